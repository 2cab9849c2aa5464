// All queries of one or two runs: filters and sorts the rows that the page holds.
document.body.classList.add("live");
const rows = document.getElementById("rows");
const all = [...rows.children];
const at = (name) => document.getElementById(name);
const kinds = at("kind"), classes = at("class"), order = at("order");

function sorted(by) {
  if (by === "kind") return all;
  if (by === "name") return [...all].sort((a, b) => a.dataset.name.localeCompare(b.dataset.name));
  const sign = by.startsWith("-") ? -1 : 1, key = by.replace("-", "");
  return [...all].sort((a, b) => sign * (a.dataset[key] - b.dataset[key]));
}

function show() {
  let shown = 0;
  for (const row of all) {
    const kind = !kinds.value || kinds.value.split(" ").includes(row.dataset.kind);
    row.hidden = !(kind && (!classes?.value || classes.value === row.dataset.class));
    shown += !row.hidden;
  }
  at("shown").textContent = `${shown} of ${all.length} queries`;
}

order.addEventListener("change", () => rows.replaceChildren(...sorted(order.value)));
kinds.addEventListener("change", show);
classes?.addEventListener("change", show);
show();
