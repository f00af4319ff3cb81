// The button that logs out, on every page that needs a login.

import { callApi } from "./http.js";

document.querySelector("[data-logout]")?.addEventListener("click", async () => {
  await callApi("POST", "/api/v1/auth/logout", { stayOn401: true });
  window.location.assign("/login");
});
