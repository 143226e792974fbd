"use strict";

// The part of the overview that changes is fetched anew while the page is visible.
const live = document.querySelector("[data-live]");
const refresh = async () => {
  // An operator who uses it with the keyboard must keep the focus.
  if (document.hidden || live.contains(document.activeElement)) return;
  try {
    const response = await fetch(live.dataset.live, { signal: AbortSignal.timeout(10000) });
    // The session has ended: the page itself leads to the login.
    if (response.redirected) location.reload();
    else if (response.ok) live.innerHTML = await response.text();
    live.classList.toggle("stale", !response.ok);
  } catch {
    live.classList.add("stale");
  }
};
if (live) setInterval(refresh, 2000);

for (const button of document.querySelectorAll("[data-copy]")) {
  // Browsers have a clipboard for pages by TLS, or of the same machine, alone.
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
  });
}
