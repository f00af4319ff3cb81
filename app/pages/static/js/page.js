// What every page behind the login does: keep itself true, and let the reader log out.

import { callApi } from "./http.js";
import { enableButtons, keepFresh } from "./refresh.js";

// Behind all scripts of the page.
document.addEventListener("DOMContentLoaded", () => enableButtons(document));
keepFresh(Number(document.body.dataset.refreshMs || 0));

document.querySelector("[data-logout]").addEventListener("click", async () => {
  await callApi("POST", "/api/v1/auth/logout", { stayOn401: true }); // a session that is gone is as good as ended
  window.location.assign("/login");
});
