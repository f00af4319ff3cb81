// The login form: asks the API, then goes where the reader wanted to go.

import { callApi } from "./http.js";
import { showFailure } from "./notice.js";

const form = document.querySelector("[data-login]");
const notice = document.getElementById("login-notice");
const button = form.querySelector('button[type="submit"]');

button.disabled = false;

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { username, password } = form.elements;
  for (const input of [username, password]) input.removeAttribute("aria-invalid");
  notice.replaceChildren();
  button.disabled = true;
  const answer = await callApi("POST", "/api/v1/auth/login", {
    body: { username: username.value, password: password.value },
    stayOn401: true,
  });
  if (answer.ok) {
    window.location.assign(form.dataset.next);
    return;
  }
  button.disabled = false;
  showFailure(notice, answer);
  if (answer.code === "INVALID_CREDENTIALS") {
    for (const input of [username, password]) input.setAttribute("aria-invalid", "true");
    password.select();
    password.focus();
  }
});
