// What the console gains by a script: figures that renew themselves, and copy buttons. Every page
// works without it. Text is only ever put in place as nodes that the service has escaped.

"use strict";

const EVERY_MS = 5000; // unless the part says otherwise
const MOST_MS = 60000;

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
  // A second click on a slow connection would send the form again.
  form.addEventListener("submit", (event) => {
    if (form.method !== "post") return;
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "yes";
  });
}
window.addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
});

// A page that says "not now" is replaced as soon as the service answers again.
const retry = document.querySelector("[data-retry]");
if (retry) {
  setInterval(async () => {
    try {
      if ((await fetch(location.href, { method: "HEAD" })).ok) location.reload();
    } catch { /* the service itself is away: ask again */ }
  }, Number(retry.dataset.retry));
}

// The part marked data-live is fetched anew while somebody looks at it and is not inside it.
const live = document.querySelector("[data-live]");
if (live) {
  const everyMs = Number(live.dataset.live) || EVERY_MS;
  let waitMs = everyMs;
  const renew = async () => {
    const part = document.getElementById(live.id);
    const resting = document.visibilityState === "visible" && !part.contains(document.activeElement);
    try {
      if (resting) {
        const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
        // A login page, an error: leave what is there and ask less often.
        if (!answer.ok || answer.redirected) throw new Error(String(answer.status));
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        const fresh = page.getElementById(live.id);
        const current = document.getElementById(live.id);
        if (fresh && !current.contains(document.activeElement)) current.replaceWith(fresh);
        waitMs = fresh && fresh.hasAttribute("data-live") ? everyMs : Infinity;
      }
    } catch {
      waitMs = Math.min(waitMs * 2, MOST_MS);
    }
    if (waitMs < Infinity) setTimeout(renew, waitMs);
  };
  setTimeout(renew, waitMs);
}
