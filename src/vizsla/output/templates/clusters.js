// Clusters of images: a person merges, splits and names them, and saves the labels as a table.
document.body.classList.add("live");
const at = (name) => document.getElementById(name);
const list = at("strips"), state = at("state"), undo = at("undo");
const clusters = () => [...list.children];
const strip = (cluster) => cluster.querySelector(".strip");
const tiles = (cluster) => [...strip(cluster).querySelectorAll("button")];
const rest = (cluster) => JSON.parse(cluster.dataset.rest);
const whole = (cluster) => cluster.querySelector(".whole");
const label = (cluster) => cluster.querySelector(".label");
const isChosen = (tile) => tile.getAttribute("aria-pressed") === "true";
const past = [];
let changed = false, last = null;

function remember() {
  past.push(clusters().map((cluster) => ({
    cluster, items: [...strip(cluster).children], rest: cluster.dataset.rest, name: label(cluster).defaultValue,
  })));
  changed = true;
}

// The default value of a label is the name before it is typed over, for undo.
function rename(cluster, name) { label(cluster).value = label(cluster).defaultValue = name; }

function restore() {
  const before = past.pop();
  if (!before) return;
  for (const one of before) {
    strip(one.cluster).replaceChildren(...one.items);
    one.cluster.dataset.rest = one.rest;
    rename(one.cluster, one.name);
  }
  list.replaceChildren(...before.map((one) => one.cluster));
  show();
}

function show(message = "") {
  let images = 0, chosen = 0;
  for (const cluster of clusters()) {
    const hidden = rest(cluster), shown = tiles(cluster), more = strip(cluster).querySelector(".rest");
    const total = shown.length + hidden.length;
    if (total === 0) { cluster.remove(); continue; }
    cluster.classList.toggle("single", total === 1);
    cluster.querySelector(".count").textContent = total;
    if (more) more.remove();
    if (hidden.length) {
      const item = document.createElement("li");
      item.className = "rest soft";
      item.textContent = `+ ${hidden.length}`;
      strip(cluster).append(item);
    }
    images += total;
    chosen += whole(cluster).checked ? total : shown.filter(isChosen).length;
  }
  undo.disabled = past.length === 0;
  const counts = `${images} images in ${list.children.length} clusters`;
  state.textContent = message || (chosen ? `${counts}, ${chosen} chosen` : counts);
}

function clear() {
  for (const tile of list.querySelectorAll("button")) tile.setAttribute("aria-pressed", "false");
  for (const box of list.querySelectorAll(".whole")) box.checked = false;
  last = null;
}

function merge() {
  const parts = clusters().filter((cluster) => whole(cluster).checked || tiles(cluster).some(isChosen));
  const boxes = parts.filter((cluster) => whole(cluster).checked);
  if (parts.length < 2) { show("Choose two clusters, or images of two, to merge."); return; }
  remember();
  const into = boxes[0] ?? parts[0];
  for (const cluster of parts) {
    if (cluster === into) continue;
    const all = whole(cluster).checked;
    strip(into).append(...tiles(cluster).filter((tile) => all || isChosen(tile)).map((tile) => tile.parentNode));
    if (all) {
      into.dataset.rest = JSON.stringify([...rest(into), ...rest(cluster)]);
      cluster.dataset.rest = "[]";
      if (!label(into).value) rename(into, label(cluster).value);
    }
  }
  clear();
  show();
  into.scrollIntoView({block: "nearest"});
}

function split() {
  const items = [...list.querySelectorAll("button")].filter(isChosen).map((tile) => tile.parentNode);
  if (items.length === 0) { show("Choose the images to split off."); return; }
  remember();
  const from = items[0].closest(".cluster"), made = from.cloneNode(true);
  made.dataset.rest = "[]";
  strip(made).replaceChildren(...items);
  rename(made, "");
  from.after(made);
  clear();
  show();
  label(made).focus();
}

const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

function save() {
  const lines = ["image,cluster,label"];
  clusters().forEach((cluster, number) => {
    const name = label(cluster).value.trim();
    const ids = [...tiles(cluster).map((tile) => tile.dataset.id), ...rest(cluster)];
    for (const id of ids) lines.push([id, number, name].map(String).map(quoted).join(","));
  });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], {type: "text/csv"}));
  link.download = "labels.csv";
  link.click();
  URL.revokeObjectURL(link.href);
  changed = false;
  show("labels.csv is saved");
}

list.addEventListener("click", (event) => {
  const tile = event.target.closest("button");
  if (!tile) return;
  const on = !isChosen(tile), among = tiles(tile.closest(".cluster"));
  const range = event.shiftKey && among.includes(last) ? [among.indexOf(last), among.indexOf(tile)].sort((a, b) => a - b) : null;
  for (const one of range ? among.slice(range[0], range[1] + 1) : [tile]) one.setAttribute("aria-pressed", String(on));
  last = tile;
  show();
});
list.addEventListener("change", (event) => {
  if (event.target.matches(".label")) { remember(); rename(event.target.closest(".cluster"), event.target.value); }
  show();
});
const actions = {m: merge, s: split, z: restore};
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input:not([type=checkbox])") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (actions[event.key]) { event.preventDefault(); actions[event.key](); }
});
at("merge").addEventListener("click", merge);
at("split").addEventListener("click", split);
undo.addEventListener("click", restore);
at("save").addEventListener("click", save);
at("tools").addEventListener("submit", (event) => event.preventDefault());
addEventListener("beforeunload", (event) => { if (changed) event.preventDefault(); });
show();
