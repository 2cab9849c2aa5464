// Dropping and pasting images, marks, keys, focus and the large view. Everything else on the page
// is links and forms, which htmx requests and which work without it.
"use strict";

const root = document.documentElement;
// looked up each time: going back in the history replaces the whole body
const view = () => document.getElementById("view");
const busy = () => document.getElementById("busy");
const one = (selector, from = document) => from.querySelector(selector);
root.classList.add("scripted");

// ── requests and errors ────────────────────────────────────────────────────────────────────────────

let waiting = 0;

function wait(change) {
  waiting = Math.max(0, waiting + change);
  one("#app")?.setAttribute("aria-busy", String(waiting > 0));
  busy().textContent = waiting > 0 ? "Searching" : "";
  if (waiting > 0) one("#announcement").textContent = ""; // or the same text would not be announced again
}

const isQuiet = (event) => event.detail.elt?.hasAttribute("data-progress");
document.addEventListener("htmx:beforeRequest", (event) => isQuiet(event) || wait(+1));
document.addEventListener("htmx:afterRequest", (event) => isQuiet(event) || wait(-1));
document.addEventListener("htmx:sendError", () => fault("The server cannot be reached"));
document.addEventListener("htmx:timeout", () => fault("The server takes too long to answer"));
document.addEventListener("htmx:beforeSwap", (event) => {
  // a proxy's error page, which would replace everything but the header
  const wanted = event.detail.target?.id;
  if (wanted && !event.detail.serverResponse.includes(`id="${wanted}"`)) {
    event.detail.shouldSwap = false;
    fault(`The server cannot answer now (${event.detail.xhr.status})`);
  } else if (wanted === "app") {
    remember();
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
function hideAllBroken() { // also those that failed before this script ran
  for (const image of document.images) image.classList.toggle("gone", image.complete && image.naturalWidth === 0);
}

// ── images to search with ─────────────────────────────────────────────────────────────────────

function searchWith(given, use) {
  const form = one("#upload");
  const pictures = [...given];
  if (!form || pictures.length === 0) return;
  const most = Number(form.elements.image.dataset.maxFiles);
  const limit = Number(document.body.dataset.bodyLimit);
  const megabytes = `${(limit / 2 ** 20).toFixed(1)} MB`;
  if (pictures.length > most) return fault(`At most ${most} images are taken at a time`);
  if (pictures.reduce((sum, file) => sum + file.size, 0) > limit) {
    const many = pictures.length > 1;
    return fault(many ? `The images together are larger than ${megabytes}` : `The image is larger than ${megabytes}`);
  }
  const files = new DataTransfer();
  for (const file of pictures) files.items.add(file);
  form.elements.image.files = files.files;
  const choice = use && one(`[name=use][value=${use}]`, form);
  if (choice) choice.checked = true;
  // with what was typed, chosen and marked since
  form.elements.state.value = String(filled(new FormData(one("#search"))));
  form.requestSubmit();
}

/** The fields for an address, without empty ones. */
const filled = (data) => new URLSearchParams([...data].filter(([, value]) => value !== ""));

const dragsFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
const zoneOf = (event) => event.target instanceof Element ? event.target.closest("[data-use]") : null;
document.addEventListener("dragover", (event) => {
  if (!dragsFile(event)) return;
  event.preventDefault();
  document.body.classList.add("dragging");
  document.body.classList.toggle("adding", Boolean(one("#upload [name=use]")));
  for (const zone of document.querySelectorAll("#drop [data-use]")) {
    zone.classList.toggle("over", zone === zoneOf(event));
  }
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  if (!dragsFile(event)) return;
  event.preventDefault();
  document.body.classList.remove("dragging");
  view().close();
  searchWith(event.dataTransfer.files, zoneOf(event)?.dataset.use);
});
document.addEventListener("paste", (event) => {
  const files = event.clipboardData?.files ?? [];
  if (files.length === 0) return;
  event.preventDefault();
  view().close();
  searchWith(files);
});

// ── menus and filters on small screens ─────────────────────────────────────────────────────────

function openMenu(tile) { // null closes the one that is open
  for (const other of document.querySelectorAll(".tile.open")) {
    if (other !== tile) setMenu(other, false);
  }
  if (tile) setMenu(tile, !tile.classList.contains("open"));
}

function setMenu(tile, open) {
  tile.classList.toggle("open", open);
  one("[data-menu]", tile).setAttribute("aria-expanded", String(open));
}

function showFilters(open) {
  document.body.classList.toggle("filters-open", open);
  one("[data-filters]")?.setAttribute("aria-expanded", String(open));
}

document.addEventListener("click", (event) => {
  if (!(event.target instanceof Element)) return;
  const button = event.target.closest("[data-menu]");
  if (button) openMenu(button.closest(".tile"));
  else if (!event.target.closest(".tile.open .actions")) openMenu(null);
  if (event.target.closest("[data-filters]")) showFilters(!document.body.classList.contains("filters-open"));
});

// ── choices ─────────────────────────────────────────────────────────────────────────────────────

document.addEventListener("change", (event) => {
  const field = event.target;
  if (field.type === "file") {
    searchWith(field.files);
  } else if (field.name === "right" || field.name === "wrong") {
    if (field.checked) {
      const tile = field.closest(".tile");
      one(`[name=${field.name === "right" ? "wrong" : "right"}]`, tile).checked = false;
    }
    showMarks();
    keepMarks();
    const tile = field.closest(".tile.open");
    openMenu(null);
    if (tile) one("[data-menu]", tile).focus();
  } else if (field.matches("#search select, #search .tick input")) {
    field.form.requestSubmit();
  }
});

const LATER = 150; // ms without typing before values are suggested
let suggesting = 0;

document.addEventListener("input", (event) => {
  const field = event.target;
  if (!field.matches("[data-suggest]")) return;
  clearTimeout(suggesting);
  const typed = event instanceof InputEvent && event.inputType !== "insertReplacementText";
  if (typed) suggesting = setTimeout(() => suggest(field), LATER);
  else if (field.value) field.form.requestSubmit(); // a suggestion was picked
});

async function suggest(field) {
  const wanted = new URLSearchParams([[field.name, field.value]]);
  try {
    const answer = await fetch(`${field.dataset.suggest}&${wanted}`);
    const options = answer.ok ? await answer.text() : null;
    if (options !== null && field.isConnected && wanted.get(field.name) === field.value) {
      field.list.innerHTML = options;
    }
  } catch { /* suggestions are optional */ }
}

document.addEventListener("htmx:configRequest", (event) => {
  const { elt, formData } = event.detail;
  if (elt?.id === "search") {
    const kept = [...formData].filter(([, value]) => value !== "");
    for (const name of [...formData.keys()]) formData.delete(name);
    for (const [name, value] of kept) formData.append(name, value);
  } else if (elt?.matches("a[href]")) {
    event.detail.path = elt.getAttribute("href"); // the current one, with the marks
  }
});

// ── marks ───────────────────────────────────────────────────────────────────────────────────────

const marksNow = () => [...new FormData(one("#search"))].filter(([name]) => name === "right" || name === "wrong");

function withMarks(query, isAnother = false) {
  const given = new URLSearchParams(query);
  given.delete("right");
  given.delete("wrong");
  for (const [name, value] of marksNow()) {
    // an image that is searched with is not marked wrong
    if (!(isAnother && name === "wrong" && value === given.get("id"))) given.append(name, value);
  }
  return given;
}

function showMarks() {
  const marks = one("[data-marks]");
  if (!one("#search") || !marks) return;
  const all = marksNow();
  const right = all.filter(([name]) => name === "right").length;
  one("[data-count]", marks).textContent = `${right} right, ${all.length - right} wrong`;
  for (const selector of ["[data-count]", "[data-again]", "[data-export]"]) {
    one(selector, marks).hidden = all.length === 0;
  }
}

// Adds the current marks to every link and to the page's address.
function keepMarks() {
  for (const link of document.querySelectorAll("#app a[href*='?'], #view a[href*='?']")) {
    if (link.matches("[data-forget]")) continue;
    const [path, query] = link.getAttribute("href").split("?");
    link.setAttribute("href", `${path}?${withMarks(query, link.matches("[data-search]"))}`);
  }
  const app = one("#app");
  if (app.dataset.address === undefined) return;
  app.dataset.address = String(withMarks(app.dataset.address));
  showAddress();
}

// Shows the page's full address: with the seed of random images, without empty fields.
function showAddress() {
  const address = one("#app")?.dataset.address;
  if (address !== undefined) history.replaceState(history.state, "", address ? `./?${address}` : "./");
}

document.addEventListener("click", async (event) => {
  const link = event.target.closest("[data-link]");
  if (!link || !navigator.clipboard || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  event.stopPropagation();
  try {
    await navigator.clipboard.writeText(link.href);
    link.textContent = one("#announcement").textContent = "Link copied";
  } catch {
    location.assign(link.href);
  }
}, true);

// ── focus and typed text ───────────────────────────────────────────────────────────────────────────────

let sent = new Map(); // the values of fields when they were last sent
let left = null; // the focus, texts typed since, and open details

const typedFields = () => document.querySelectorAll("#search input[id]:not([type=checkbox], [type=hidden])");

document.addEventListener("htmx:beforeRequest", (event) => {
  const { elt, target } = event.detail;
  if (target?.id !== "app") return;
  const sentByButton = event.detail.requestConfig?.triggeringEvent?.submitter; // or by Enter
  if (sentByButton || !document.activeElement?.closest("#filters")) showFilters(false);
  const all = elt.matches("form, #over, #unfiltered, .home"); // other links keep what was typed
  sent = new Map([...typedFields()].map((field) => [field.id, all ? field.value : field.defaultValue]));
});

function remember() {
  const at = document.activeElement;
  left = {
    focus: at && at !== document.body ? at : null,
    inside: Boolean(at?.closest("#app, #view")),
    inView: view().open,
    tile: at?.closest(".tile")?.dataset.id ?? (view().open ? opened : null),
    typed: [...typedFields()].filter((field) => sent.has(field.id) && sent.get(field.id) !== field.value),
    unfolded: [...document.querySelectorAll("#app details[open]")].map((one) => one.id),
  };
}

function restore() {
  if (!left) return;
  const { focus, inside, inView, tile, typed, unfolded } = left;
  left = null;
  for (const id of unfolded) document.getElementById(id)?.setAttribute("open", "");
  for (const before of typed) {
    const field = document.getElementById(before.id);
    if (field) field.value = before.value;
  }
  if (!inside || (focus.isConnected && !inView)) return;
  const wrong = one("[aria-invalid]");
  const again = wrong ?? (focus.id ? document.getElementById(focus.id) : null);
  let same = tileOf(tile)?.querySelector(`[data-act=${focus.dataset.act ?? "open"}]`);
  if (same && !same.checkVisibility()) same = one("[data-menu]", tileOf(tile)); // in a closed menu
  const found = [again, same].find((element) => element?.checkVisibility());
  (found ?? one("#results"))?.focus();
}

// ── the large view ──────────────────────────────────────────────────────────────────────────────

let opened = null; // the id of the tile that is shown large

document.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (link?.matches("[data-open]")) opened = link.closest(".tile").dataset.id;
  if (link?.matches("[data-close]") && view().open) {
    event.preventDefault();
    view().close();
  }
  if (event.target === view()) view().close(); // a click outside
  const step = event.target.closest("[data-step]");
  if (step) stepTo(tiles(), tiles().indexOf(tileOf(opened)) + Number(step.dataset.step));
}, true);

document.addEventListener("htmx:afterSwap", (event) => {
  if (event.detail.target?.id === "view-content") {
    if (!view().open) view().showModal();
    view().scrollTop = 0;
    one("#view-title")?.focus();
    const at = tiles().indexOf(tileOf(opened));
    for (const step of view().querySelectorAll("[data-step]")) {
      step.disabled = !tiles()[at + Number(step.dataset.step)];
    }
  } else {
    if (view()?.open) view().close();
    restore();
  }
});

/** The frame lies on the picture as it is fitted into its place, which takes its size. */
function frame(picture) {
  const svg = one(".found", picture.parentElement);
  if (!svg || !picture.naturalWidth) return;
  svg.setAttribute("viewBox", `0 0 ${picture.naturalWidth} ${picture.naturalHeight}`);
  svg.classList.remove("unsized");
  one("g", svg).setAttribute("transform", `scale(${picture.naturalWidth} ${picture.naturalHeight})`);
}

document.addEventListener("load", (event) => { // it does not bubble
  if (event.target.matches?.("[data-framed]")) frame(event.target);
}, true);
for (const picture of document.querySelectorAll("[data-framed]")) frame(picture);

document.addEventListener("close", (event) => { // it does not bubble
  if (event.target === view()) tileOf(opened)?.querySelector("[data-open]").focus();
}, true);

document.addEventListener("htmx:afterSettle", (event) => {
  if (event.detail.target?.id === "app" || event.detail.elt?.id === "app") {
    arrived();
    if (one(".fault")) one(".fault").scrollIntoView({ block: "nearest" });
  }
});

function arrived() {
  hideAllBroken();
  showMarks();
  showAddress();
  showFilters(document.body.classList.contains("filters-open"));
  one("#announcement").textContent = one("#app")?.dataset.announcement ?? "";
}

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
  if (event.key === "Escape" && one(".tile.open")) {
    const button = one(".tile.open [data-menu]");
    openMenu(null);
    button.focus();
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
    if (at < 0 && !event.target.matches("body, #results")) return;
    event.preventDefault();
    stepTo(all, at < 0 ? 0 : at + steps[event.key]);
  } else if (tile && event.key === "s") {
    one("[data-search]", tile).click();
  } else if (tile && (event.key === "r" || event.key === "w")) {
    one(`[name=${event.key === "r" ? "right" : "wrong"}]`, tile)?.click();
  }
});

hideAllBroken();
showMarks();
showAddress();
