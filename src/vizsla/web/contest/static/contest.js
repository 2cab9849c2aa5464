// Fetches the page again and puts its content in place, so that a leaderboard follows the contest.
// Without this file the pages can be read all the same.
"use strict";

const EVERY = 15_000; // milliseconds
const status = document.getElementById("status");

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch(location.href, {
      headers: { accept: "text/html" },
      signal: AbortSignal.timeout(EVERY),
    });
    if (!answer.ok) throw new Error(answer.statusText);
    show(new DOMParser().parseFromString(await answer.text(), "text/html"));
    status.textContent = "Updated " + new Date().toLocaleTimeString();
    status.classList.remove("stale");
  } catch {
    status.textContent = "Not connected, trying again";
    status.classList.add("stale");
  }
}

function show(page) {
  const now = document.getElementById("live");
  const next = page.getElementById("live");
  const filled = [...now.querySelectorAll("input")].some((field) => field.value !== "");
  const busy = filled || now.contains(document.activeElement) || !getSelection().isCollapsed;
  if (next && !busy && now.innerHTML !== next.innerHTML) now.innerHTML = next.innerHTML;
}

setInterval(refresh, EVERY);
document.addEventListener("visibilitychange", refresh);
