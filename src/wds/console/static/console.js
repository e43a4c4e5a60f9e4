// Optional extras: live counts, copy buttons, protection against double clicks. Every page works
// without them. Text is inserted only as nodes that the service has escaped.

"use strict";

const REFRESH_MS = 5000; // unless data-live has a value
const MAX_REFRESH_MS = 60000;

for (const button of document.querySelectorAll("button[data-copy]")) {
  const source = document.getElementById(button.dataset.copy);
  if (!source || !navigator.clipboard) continue;
  const title = button.textContent;
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(source.textContent.trim());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed";
    }
    setTimeout(() => { button.textContent = title; }, 1500);
  });
}

for (const form of document.querySelectorAll("form")) {
  // On a slow connection a second click would submit the form again.
  form.addEventListener("submit", (event) => {
    if (form.method !== "post") return;
    if (form.dataset.submitted) event.preventDefault();
    form.dataset.submitted = "yes";
  });
}
window.addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-submitted]")) delete form.dataset.submitted;
});

// An error page that can be retried is reloaded as soon as the service answers again.
const retry = document.querySelector("[data-retry]");
if (retry) {
  setInterval(async () => {
    try {
      if ((await fetch(location.href, { method: "HEAD" })).ok) location.reload();
    } catch { /* the service does not answer at all: try again */ }
  }, Number(retry.dataset.retry));
}

// The element marked data-live is refreshed while the page is visible and the focus is not in it.
const live = document.querySelector("[data-live]");
if (live) {
  const refreshMs = Number(live.dataset.live) || REFRESH_MS;
  let delayMs = refreshMs;
  const refresh = async () => {
    const element = document.getElementById(live.id);
    const idle = document.visibilityState === "visible" && !element.contains(document.activeElement);
    try {
      if (idle) {
        const response = await fetch(location.href, { headers: { Accept: "text/html" } });
        // A login page or an error: keep what is shown and ask less often.
        if (!response.ok || response.redirected) throw new Error(String(response.status));
        const page = new DOMParser().parseFromString(await response.text(), "text/html");
        const updated = page.getElementById(live.id);
        const current = document.getElementById(live.id);
        if (updated && !current.contains(document.activeElement)) current.replaceWith(updated);
        delayMs = updated && updated.hasAttribute("data-live") ? refreshMs : Infinity;
      }
    } catch {
      delayMs = Math.min(delayMs * 2, MAX_REFRESH_MS);
    }
    if (delayMs < Infinity) setTimeout(refresh, delayMs);
  };
  setTimeout(refresh, delayMs);
}
