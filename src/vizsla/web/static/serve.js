// Dropping and pasting pictures, marks, keys and the large view. All else on the page is links and
// forms, which htmx fetches and which work without it.
"use strict";

const root = document.documentElement;
// looked up each time: going back in the history replaces the whole body
const view = () => document.getElementById("view");
const busy = () => document.getElementById("busy");
const one = (selector, from = document) => from.querySelector(selector);
root.classList.add("scripted");

// ── what is going on ────────────────────────────────────────────────────────────────────────────

let waiting = 0;

function wait(change) {
  waiting = Math.max(0, waiting + change);
  one("#app")?.setAttribute("aria-busy", String(waiting > 0));
  busy().textContent = waiting > 0 ? "Searching" : "";
}

const isQuiet = (event) => event.detail.elt?.hasAttribute("data-progress");
document.addEventListener("htmx:beforeRequest", (event) => isQuiet(event) || wait(+1));
document.addEventListener("htmx:afterRequest", (event) => isQuiet(event) || wait(-1));
document.addEventListener("htmx:sendError", () => fault("The server cannot be reached"));
document.addEventListener("htmx:timeout", () => fault("The server takes too long"));
document.addEventListener("htmx:beforeSwap", (event) => {
  // a proxy's page, or a plain sentence: it would leave nothing but the header
  const wanted = event.detail.target?.id;
  if (wanted && !event.detail.serverResponse.includes(`id="${wanted}"`)) {
    event.detail.shouldSwap = false;
    fault(`The server cannot answer now (${event.detail.xhr.status})`);
  }
});

function fault(message) {
  one(".fault")?.remove();
  const box = document.createElement("div");
  box.className = "fault";
  box.setAttribute("role", "alert");
  const text = document.createElement("p");
  text.textContent = message + ".";
  box.append(text);
  one("#results")?.before(box);
}

function hideBroken(event) {
  if (event.target instanceof HTMLImageElement) event.target.classList.add("gone");
}
document.addEventListener("error", hideBroken, true); // error events of images do not bubble

// ── pictures to search with ─────────────────────────────────────────────────────────────────────

function searchWith(file) {
  const form = one("#upload");
  const limit = Number(document.body.dataset.bodyLimit);
  if (!form || !file) return;
  if (file.size > limit) return fault(`The picture is larger than ${(limit / 2 ** 20).toFixed(1)} MB`);
  const files = new DataTransfer();
  files.items.add(file);
  form.elements.image.files = files.files;
  send(form);
}

function send(form) {
  // what was typed and chosen meanwhile goes along
  const given = new URLSearchParams(new FormData(one("#search")));
  for (const name of ["query", "id", "right", "wrong"]) given.delete(name);
  form.elements.state.value = [...given].filter(([, value]) => value !== "")
    .map((pair) => pair.map(encodeURIComponent).join("=")).join("&");
  form.requestSubmit();
}

const dragsFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
document.addEventListener("dragover", (event) => {
  if (!dragsFile(event)) return;
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  if (!dragsFile(event)) return;
  event.preventDefault();
  document.body.classList.remove("dragging");
  view().close();
  searchWith(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])][0];
  if (!file) return;
  event.preventDefault();
  searchWith(file);
});

// ── choices and marks ───────────────────────────────────────────────────────────────────────────

document.addEventListener("change", (event) => {
  const field = event.target;
  if (field.type === "file") {
    if (field.files.length) searchWith(field.files[0]);
  } else if (field.name === "right" || field.name === "wrong") {
    if (field.checked) {
      const tile = field.closest(".tile");
      one(`[name=${field.name === "right" ? "wrong" : "right"}]`, tile).checked = false;
    }
    showMarks();
  } else if (field.matches("#search select")) {
    field.form.requestSubmit();
  }
});

function showMarks() {
  const form = one("#search");
  const marks = one("[data-marks]");
  if (!form || !marks) return;
  const given = new URLSearchParams(new FormData(form));
  const right = given.getAll("right").length;
  const wrong = given.getAll("wrong").length;
  const some = right + wrong > 0;
  one("[data-count]", marks).textContent = `${right} right, ${wrong} wrong`;
  for (const selector of ["[data-count]", "[data-again]", "[data-export]"]) {
    one(selector, marks).hidden = !some;
  }
  const link = one("[data-export]", marks);
  link.href = "./marks.csv?" + given;
}

// An empty field is no choice: it stays out of the address.
document.addEventListener("htmx:configRequest", (event) => {
  if (event.detail.elt?.id !== "search") return;
  for (const [name, value] of Object.entries(event.detail.parameters)) {
    if (value === "") delete event.detail.parameters[name];
  }
});

// ── the large view ──────────────────────────────────────────────────────────────────────────────

let opened = null; // the tile that is shown large

document.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (link?.matches("[data-open]")) opened = link.closest(".tile").dataset.id;
  if (link?.matches("[data-close]") && view().open) {
    event.preventDefault();
    view().close();
  }
  if (event.target === view()) view().close(); // beside it
}, true);

document.addEventListener("htmx:afterSwap", (event) => {
  if (event.detail.target?.id === "view-content") {
    if (!view().open) view().showModal();
    view().scrollTop = 0;
  } else if (view()?.open) {
    view().close();
  }
});

document.addEventListener("close", (event) => { // it does not bubble
  if (event.target === view()) tileOf(opened)?.querySelector("[data-open]").focus();
}, true);

document.addEventListener("htmx:afterSettle", (event) => {
  if (event.detail.target?.id === "app" || event.detail.elt?.id === "app") {
    showMarks();
    if (one(".fault")) one(".fault").scrollIntoView({ block: "nearest" });
  }
});

// ── keys ────────────────────────────────────────────────────────────────────────────────────────

const tiles = () => [...document.querySelectorAll(".tile")];
const tileOf = (id) => tiles().find((tile) => tile.dataset.id === id);

function columns(all) {
  const top = all[0].offsetTop;
  const next = all.findIndex((tile) => tile.offsetTop !== top);
  return next < 0 ? all.length : next;
}

function stepTo(all, at) {
  const link = one("[data-open]", all[Math.max(0, Math.min(all.length - 1, at))]);
  if (view().open) link.click();
  else link.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input:not([type=checkbox]), select, textarea")) return;
  if (event.key === "/") {
    event.preventDefault();
    view().close();
    (one("#text") ?? one("#image"))?.focus();
    return;
  }
  const all = tiles();
  const tile = view().open ? tileOf(opened) : event.target.closest(".tile");
  const at = all.indexOf(tile);
  if (all.length === 0) return;
  const steps = {
    ArrowRight: 1,
    ArrowLeft: -1,
    ArrowDown: view().open ? 0 : columns(all),
    ArrowUp: view().open ? 0 : -columns(all),
  };
  if (event.key in steps && steps[event.key] !== 0) {
    if (at < 0 && event.target !== document.body) return;
    event.preventDefault();
    stepTo(all, at < 0 ? 0 : at + steps[event.key]);
  } else if (tile && event.key === "s") {
    one("[data-search]", tile).click();
  } else if (tile && (event.key === "r" || event.key === "w")) {
    one(`[name=${event.key === "r" ? "right" : "wrong"}]`, tile)?.click();
  }
});

showMarks();
