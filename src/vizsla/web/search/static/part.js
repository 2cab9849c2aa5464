// The rectangle on the picture searched with: drawn by mouse, touch or keys. It is in the address
// once it is searched with; until then in data-box of the stage, as fractions of the picture.
"use strict";

const stage = () => document.getElementById("stage");
const LEAST = 0.02; // of a side: a smaller rectangle is none
const STEP = 0.02; // of a side, for each key
const FIRST = { x: 0.25, y: 0.25, w: 0.5, h: 0.5 }; // of the keys, where there is none
let drag = null; // {kind, from, before, grip}: what the pointer does, and from where

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const percent = (value) => `${Math.round(100 * value)} %`;

function boxNow() {
  const [x, y, w, h] = (stage()?.dataset.box ?? "").split(",").map(Number);
  return h === undefined ? null : { x, y, w, h };
}

/** Draws it; null takes it away. */
function setBox(box) {
  const at = stage();
  if (box) at.dataset.box = [box.x, box.y, box.w, box.h].map((value) => Number(value.toFixed(4))).join(",");
  else delete at.dataset.box;
  showBox();
}

function showBox() {
  const at = stage();
  if (!at) return;
  const box = boxNow();
  for (const shown of at.querySelectorAll("[data-box-sized]")) {
    shown.hidden = box === null;
    const sides = box ? { left: box.x, top: box.y, width: box.w, height: box.h } : {};
    for (const [name, value] of Object.entries(sides)) shown.style[name] = `${100 * value}%`;
  }
  document.getElementById("part-button").disabled = box === null;
  document.getElementById("part-clear").disabled = box === null && searchedWith() === "";
}

function sayWhere() {
  const box = boxNow();
  document.getElementById("stage-where").textContent = box
    ? `From the left ${percent(box.x)}, from the top ${percent(box.y)}, ${percent(box.w)} wide, ${percent(box.h)} high`
    : "No rectangle";
}

// ── searching ────────────────────────────────────────────────────────────────────────────────────

const field = () => document.querySelector("#search [name=box]");
const searchedWith = () => field()?.value ?? "";

function searchWithPart(box) {
  field().value = box;
  if (matchMedia("(max-width: 36rem)").matches) document.getElementById("part").open = false;
  field().form.requestSubmit();
}

function clearBox() {
  setBox(null);
  sayWhere();
  if (searchedWith() !== "") searchWithPart("");
}

document.addEventListener("click", (event) => {
  if (!(event.target instanceof Element)) return;
  if (event.target.closest("[data-part-search]")) searchWithPart(stage().dataset.box);
  if (event.target.closest("[data-part-clear]")) clearBox();
});

// ── mouse and touch ──────────────────────────────────────────────────────────────────────────────

/** Where the pointer is, as fractions of the picture. */
function place(event) {
  const around = stage().querySelector("img").getBoundingClientRect();
  return { x: (event.clientX - around.left) / around.width, y: (event.clientY - around.top) / around.height };
}

/** The rectangle with these two corners, inside the picture. */
function between(one, other) {
  const xs = [one.x, other.x].map((value) => clamp(value, 0, 1)).sort((a, b) => a - b);
  const ys = [one.y, other.y].map((value) => clamp(value, 0, 1)).sort((a, b) => a - b);
  return { x: xs[0], y: ys[0], w: xs[1] - xs[0], h: ys[1] - ys[0] };
}

function dragged(to) {
  const { kind, from, before, grip } = drag;
  if (kind === "new") return between(from, to);
  if (kind === "move") {
    const x = clamp(before.x + to.x - from.x, 0, 1 - before.w);
    return { ...before, x, y: clamp(before.y + to.y - from.y, 0, 1 - before.h) };
  }
  const fixed = { x: kind.includes("w") ? before.x + before.w : before.x, y: kind.includes("n") ? before.y + before.h : before.y };
  return between(fixed, { x: to.x + grip.x, y: to.y + grip.y });
}

document.addEventListener("pointerdown", (event) => {
  const at = event.target instanceof Element ? event.target.closest("#stage") : null;
  if (!at || event.button !== 0 || !event.isPrimary) return;
  event.preventDefault(); // no selection, and no dragging of the picture
  at.focus({ preventScroll: true });
  at.setPointerCapture(event.pointerId);
  const kind = event.target.dataset.corner ?? (event.target.closest(".frame") ? "move" : "new");
  const before = boxNow();
  const from = place(event);
  const corner = before && {
    x: before.x + (kind.includes("e") ? before.w : 0), y: before.y + (kind.includes("s") ? before.h : 0),
  };
  const grip = corner ? { x: corner.x - from.x, y: corner.y - from.y } : null; // from the finger to the corner
  drag = { kind, from, before, grip };
});

document.addEventListener("pointermove", (event) => {
  if (!drag || !event.isPrimary) return;
  const box = dragged(place(event));
  setBox(box.w >= LEAST && box.h >= LEAST ? box : drag.before);
});

for (const name of ["pointerup", "pointercancel"]) {
  document.addEventListener(name, (event) => {
    if (!drag || !event.isPrimary) return;
    if (name === "pointercancel") setBox(drag.before);
    drag = null;
    sayWhere();
  });
}

// ── keys ─────────────────────────────────────────────────────────────────────────────────────────

const ARROWS = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };

function byArrow([across, down], resizes) {
  const box = boxNow();
  if (!box) return FIRST;
  if (resizes) return { ...box, w: clamp(box.w + across, LEAST, 1 - box.x), h: clamp(box.h + down, LEAST, 1 - box.y) };
  return { ...box, x: clamp(box.x + across, 0, 1 - box.w), y: clamp(box.y + down, 0, 1 - box.h) };
}

document.addEventListener("keydown", (event) => {
  if (event.target !== stage() || !stage() || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in ARROWS) {
    setBox(byArrow(ARROWS[event.key], event.shiftKey));
    sayWhere();
  } else if (event.key === "Enter" && boxNow()) searchWithPart(stage().dataset.box);
  else if (event.key === "Escape") clearBox();
  else return;
  event.preventDefault();
  event.stopPropagation(); // the arrows would move through the results
}, true);

// ── the size of the picture ──────────────────────────────────────────────────────────────────────

/** As wide as its height allows: small pictures are shown larger. */
function fitStage() {
  const image = stage()?.querySelector("img");
  if (image?.naturalHeight) stage().style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
}

document.addEventListener("load", (event) => { // it does not bubble
  if (event.target instanceof HTMLImageElement && event.target.closest("#stage")) fitStage();
}, true);

function arrivedStage() {
  fitStage();
  showBox();
}
document.addEventListener("htmx:afterSettle", arrivedStage);
arrivedStage();
