// The dialog that changes the settings of an own job. The API replaces a job's trigger with every change, so the
// stored one goes along, as it was read.

import { callApi } from "./http.js";
import { showFailure, showNotice } from "./notice.js";
import { refresh } from "./refresh.js";

const NUMBERS = ["max_instances", "max_attempts", "retry_delay", "soft_time_limit", "time_limit"];
const CAN_BE_NONE = ["soft_time_limit", "time_limit", "ping_url"];

const dialog = document.getElementById("settings-dialog");
const form = dialog.querySelector("form");
const notice = document.getElementById("settings-notice");

let opener = null;

function value(name) {
  const field = form.elements[name];
  if (field.type === "checkbox") return field.checked;
  const text = field.value.trim();
  if (text === "" && CAN_BE_NONE.includes(name)) return null;
  // What is no number goes as it is: the server says which field it was and what is accepted.
  return NUMBERS.includes(name) && /^-?\d+$/.test(text) ? Number(text) : text;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-change-settings]");
  if (!button) return;
  opener = { ...button.dataset, id: button.id };
  const settings = JSON.parse(opener.settings);
  for (const [name, held] of Object.entries(settings)) {
    const field = form.elements[name];
    if (field.type === "checkbox") field.checked = held;
    else field.value = held ?? "";
  }
  notice.replaceChildren();
  dialog.showModal();
});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector('button[type="submit"]');
  const { type, ...trigger } = JSON.parse(opener.trigger);
  const body = { ...trigger, trigger_type: type };
  for (const name of Object.keys(JSON.parse(opener.settings))) body[name] = value(name);
  button.disabled = true;
  const answer = await callApi("PUT", `/api/v1/scheduler/jobs/${encodeURIComponent(opener.jobId)}`, {
    body,
    ifMatch: `"${opener.revision}"`, // what somebody else saved since the dialog opened must not be lost
  });
  button.disabled = false;
  if (!answer.ok) {
    showFailure(notice, answer);
    notice.scrollIntoView({ block: "nearest" });
    form.elements[answer.context.field]?.focus();
    return;
  }
  showNotice(document.getElementById(opener.answerIn), { kind: "good", message: answer.message });
  await refresh(); // before closing: whoever opens the dialog again must meet the new settings
  dialog.close();
  document.getElementById(opener.id)?.focus(); // the button was replaced meanwhile, and the dialog gives back the old one
});
