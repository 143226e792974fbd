"use strict";

// The part of the overview that changes is fetched anew while the page is visible.
const live = document.querySelector("[data-live]");
const stale = document.querySelector("[data-stale]");
const renew = async () => {
  try {
    if (document.hidden) return;
    const response = await fetch(live.dataset.live, { signal: AbortSignal.timeout(10000) });
    // The session has ended: the page itself leads to the login.
    if (response.redirected) location.reload();
    else if (response.ok) show(await response.text());
    mark(!response.ok);
  } catch {
    mark(true);
  } finally {
    setTimeout(renew, 2000);
  }
};
// Not by its colour alone.
const mark = isStale => {
  live.classList.toggle("stale", isStale);
  stale.hidden = !isStale;
};
const show = html => {
  // A link that is replaced while the button is down is not followed.
  if (live.matches(":active")) return;
  // An operator who uses it with the keyboard must keep the focus.
  const focused = live.contains(document.activeElement) && document.activeElement.getAttribute("href");
  live.innerHTML = html;
  if (focused) live.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
};
if (live) setTimeout(renew, 2000);

for (const button of document.querySelectorAll("[data-copy]")) {
  // Browsers have a clipboard for pages by TLS, or of the same machine, alone.
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
  });
}
