// The button of a run that has not ended: cancels it, after asking.

import { callApi } from "./http.js";
import { showFailure, showNotice } from "./notice.js";
import { refresh } from "./refresh.js";

const dialog = document.getElementById("cancel-dialog");
let runId = "";

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-cancel-run]");
  if (!button) return;
  runId = button.dataset.cancelRun;
  dialog.showModal();
});

dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());

dialog.querySelector("[data-confirm]").addEventListener("click", async (event) => {
  const button = event.currentTarget;
  button.disabled = true;
  const answer = await callApi("POST", `/api/v1/scheduler/runs/${runId}/actions/cancel`);
  button.disabled = false;
  dialog.close();
  const host = document.getElementById("page-notice");
  if (answer.ok) showNotice(host, { kind: "good", message: answer.message });
  else showFailure(host, answer);
  await refresh();
});
