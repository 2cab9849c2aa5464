"""The generated data of `vizsla demo` → the pictures in README.md, as WebP files in docs/pictures/.

    python docs/pictures.py [FOLDER OF A DEMO]

Without a folder the demo is run in a temporary one. Needs Chromium and playwright (extra `dev`).
"""

import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from vizsla.run.demo import demo

PICTURES = Path(__file__).parent / "pictures"
CHROMIUM = "/usr/bin/chromium"
COMMAND = "from vizsla.cli.main import main; main()"
MARGIN = 16  # pixels below the last row of results
SHEETS = 2  # queries on the first picture


def draw_all(folder: Path) -> None:
    """Writes sheet.webp, search.webp and report.webp from the demo in `folder`."""
    PICTURES.mkdir(exist_ok=True)
    run = max((folder / "runs").iterdir())  # the last one: with a fitted head
    sheets = chosen_sheets(folder, run.name)
    save(stacked(sheets), "sheet")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = opened(browser, 1120, 760)
        page.goto((folder / "report.html").as_uri())
        page.evaluate("document.getElementById('curves').scrollIntoView()")
        save(screenshot(page), "report")
        query = folder / f"data/test/query/{sheets[0].stem}.jpg"
        save(search_page(browser, run, query), "search")
        browser.close()


def chosen_sheets(folder: Path, run: str) -> list[Path]:
    """Sheets of the run, spread over the names of its queries."""
    (drawn,) = (folder / "visualizations").glob(f"*_{run}")
    sheets = sorted(drawn.glob("*.png"))
    return [sheets[i * (len(sheets) - 1) // (SHEETS - 1)] for i in range(SHEETS)]


def stacked(sheets: list[Path]) -> Image.Image:
    """The sheets below each other, each as wide as the first."""
    images = [Image.open(path).convert("RGB") for path in sheets]
    width = images[0].width
    images = [image.resize((width, image.height * width // image.width)) for image in images]
    whole = Image.new("RGB", (width, sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    return whole


def opened(browser: Browser, width: int, height: int) -> Page:
    """An empty page in light colours."""
    return browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")


def screenshot(page: Page, down_to: str | None = None) -> Image.Image:
    """The page once it is quiet. down_to: the element that it ends below, instead of the window."""
    page.wait_for_load_state("networkidle")
    shown = Image.open(io.BytesIO(page.screenshot(full_page=down_to is not None))).convert("RGB")
    box = page.locator(down_to).first.bounding_box() if down_to else None
    if box is None:
        return shown
    return shown.crop((0, 0, shown.width, round(box["y"] + box["height"]) + MARGIN))


def search_page(browser: Browser, run: Path, query: Path) -> Image.Image:
    """The page of `vizsla serve` after a search with the query image."""
    words = [sys.executable, "-c", COMMAND, "serve", str(run), "--port", "0"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    try:
        for line in server.stdout:
            if address := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            raise SystemExit(f"vizsla serve ended without an address: {words}")
        page = opened(browser, 1120, 760)
        page.goto(address[0])
        page.locator("input[type=file]").first.set_input_files(query)
        page.wait_for_timeout(5_000)
        return screenshot(page, down_to="li.tile")
    finally:
        server.terminate()
        server.wait(30)


def save(image: Image.Image, name: str) -> None:
    """Writes a picture at most 1,120 pixels wide."""
    image.thumbnail((1120, 2000))
    path = PICTURES / f"{name}.webp"
    image.save(path, quality=85, method=6)
    print(f"{path}: {image.width} × {image.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        draw_all(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            demo(temporary)
            draw_all(Path(temporary))
