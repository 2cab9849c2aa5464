// The map: shows the image of the point nearest to the pointer, and highlights one class.
const map = document.querySelector(".plane");
if (map) {
  document.body.classList.add("live");
  const seen = document.getElementById("seen");
  const [tile, columns, large] = [+map.dataset.tile, +map.dataset.columns, 144];
  const points = [...map.querySelectorAll(".pt")].map((mark) => {
    const box = mark.getBBox(), title = mark.querySelector("title");
    const text = title.textContent;
    title.remove(); // or the browser would show it over ours
    return { mark, text, x: box.x + box.width / 2, y: box.y + box.height / 2 };
  });
  let current = null;

  function hide() {
    if (current) current.mark.classList.remove("on");
    current = null;
    seen.style.display = "none";
  }

  function show(point) {
    if (point === current) return;
    hide();
    current = point;
    point.mark.classList.add("on");
    const i = +point.mark.dataset.i, scale = large / tile;
    const picture = seen.firstElementChild;
    picture.style.backgroundSize = `${large * columns}px auto`;
    picture.style.backgroundPosition =
      `-${(i % columns) * tile * scale}px -${Math.floor(i / columns) * tile * scale}px`;
    seen.lastElementChild.textContent = point.text;
    seen.style.display = "block";
    const at = point.mark.getBoundingClientRect(), box = seen.getBoundingClientRect();
    const below = at.bottom + 10 + box.height < innerHeight;
    seen.style.top = `${below ? at.bottom + 10 : Math.max(4, at.top - 10 - box.height)}px`;
    seen.style.left = `${Math.min(innerWidth - box.width - 8, Math.max(8, at.left - box.width / 2))}px`;
  }

  function nearest(event) {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(map.getScreenCTM().inverse());
    const reach = 14 / map.getScreenCTM().a;
    let best = null, least = reach * reach;
    for (const point of points) {
      if (map.classList.contains("picked") && !point.mark.classList.contains("in")) continue;
      const distance = (point.x - at.x) ** 2 + (point.y - at.y) ** 2;
      if (distance < least) [best, least] = [point, distance];
    }
    return best;
  }

  const follow = (event) => { const point = nearest(event); point ? show(point) : hide(); };
  map.addEventListener("pointermove", follow);
  map.addEventListener("click", follow);
  map.addEventListener("pointerleave", hide);
  map.addEventListener("blur", hide);
  addEventListener("scroll", hide, { passive: true });
  map.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    const open = points.filter((p) => !map.classList.contains("picked") || p.mark.classList.contains("in"));
    show(open[(open.indexOf(current) + step + open.length) % open.length]);
  });
  const pick = document.getElementById("pick");
  pick?.addEventListener("change", () => {
    hide();
    map.classList.toggle("picked", pick.value !== "");
    for (const { mark } of points) mark.classList.toggle("in", mark.dataset.c === pick.value);
  });
}
