// Keeps a page true: fetches it again and replaces the parts marked with `data-live` and an id.

import { goToLogin } from "./http.js";

let running = null;
let following = null;

/** Buttons that only a script can answer are off until it is there: a click before that would be lost without a word. */
export function enableButtons(page) {
  for (const button of page.querySelectorAll("button[data-scripted]")) button.disabled = false;
}

function replacePart(old, fresh) {
  if (old.outerHTML === fresh.outerHTML) return;
  const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
  // What an action answered stays until the next action: the server does not know of it.
  for (const host of old.querySelectorAll("[data-notice][id]")) {
    const place = fresh.querySelector(`#${CSS.escape(host.id)}`);
    if (place) place.replaceWith(host);
  }
  old.replaceWith(fresh);
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

async function fetchAndReplace() {
  let response;
  try {
    response = await fetch(window.location.href, { headers: { Accept: "text/html" } });
  } catch {
    return; // out of reach for now: the next turn tries again
  }
  if (response.redirected && new URL(response.url).pathname === "/login") {
    goToLogin();
    return;
  }
  if (!response.ok) return;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  enableButtons(page);
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(old.id);
    if (fresh) replacePart(old, document.adoptNode(fresh));
  }
}

/** Fetches the page now. A fetch that is under way may be older than what the caller did: another follows it. */
export function refresh() {
  if (running === null) {
    running = fetchAndReplace().finally(() => {
      running = null;
    });
    return running;
  }
  following ??= running.then(() => {
    following = null;
    return refresh();
  });
  return following;
}

/** Fetches the page again every `intervalMs`, while it is seen and no dialog is open; 0 for never. */
export function keepFresh(intervalMs) {
  if (intervalMs === 0) return;
  let timer = null;
  const schedule = () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const busy = document.hidden || document.querySelector("dialog[open]");
      if (!busy) await refresh();
      schedule();
    }, intervalMs);
  };
  schedule();
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) {
      refresh();
      schedule();
    }
  });
}
