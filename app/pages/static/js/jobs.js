// The buttons of a job (run, pause, resume, enable, disable) and of the whole scheduler (reload).

import { callApi, newKey, text } from "./http.js";
import { showFailure, showNotice } from "./notice.js";
import { refresh } from "./refresh.js";

const WATCH_MS = [400, 1000, 2000, 4000, 8000]; // a short run is seen to its end, a long one by the page's own turn

function jobPath(jobId) {
  return `/api/v1/scheduler/jobs/${encodeURIComponent(jobId)}`;
}

const ACTIONS = {
  run: (jobId) => callApi("POST", `${jobPath(jobId)}/actions/run`, { idempotencyKey: newKey() }),
  pause: (jobId) => callApi("POST", `${jobPath(jobId)}/actions/pause`),
  resume: (jobId) => callApi("POST", `${jobPath(jobId)}/actions/resume`),
  restore: (jobId) => callApi("POST", `${jobPath(jobId)}/actions/restore`),
  enable: (jobId) => callApi("POST", `${jobPath(jobId)}/action`, { body: { action: "enable" } }),
  disable: (jobId) => callApi("POST", `${jobPath(jobId)}/action`, { body: { action: "disable" } }),
};

function pause(ms) {
  return new Promise((resolve) => {
    setTimeout(resolve, ms);
  });
}

async function watch() {
  for (const ms of WATCH_MS) {
    await pause(ms);
    await refresh();
  }
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-action]");
  if (!button || button.getAttribute("aria-busy") === "true") return;
  const { action, jobId, answerIn } = button.dataset;
  button.setAttribute("aria-busy", "true");
  const answer = await ACTIONS[action](jobId);
  button.removeAttribute("aria-busy");
  const host = document.getElementById(answerIn);
  if (!answer.ok) {
    showFailure(host, answer);
    return;
  }
  const runId = answer.data?.run_id;
  const link = runId ? { href: `/scheduler/runs/${runId}`, label: text("showRun") } : null;
  showNotice(host, { kind: "good", message: answer.message, link });
  await refresh();
  if (action === "run") watch();
});

const reloadDialog = document.getElementById("reload-dialog");

function reloadSummary(data) {
  const lines = [];
  if (data.reloaded?.length) lines.push(`${text("reloaded")} ${data.reloaded.join(", ")}`);
  const gone = (data.deleted || []).filter((id) => !(data.reloaded || []).includes(id));
  if (gone.length) lines.push(`${text("removed")} ${gone.join(", ")}`);
  for (const [id, reason] of Object.entries(data.failed || {})) lines.push(`${text("notRemoved")} ${id}: ${reason}`);
  return lines;
}

document.querySelector("[data-reload]")?.addEventListener("click", () => reloadDialog.showModal());

reloadDialog?.querySelector("[data-confirm]").addEventListener("click", async (event) => {
  const button = event.currentTarget;
  button.disabled = true;
  const answer = await callApi("POST", "/api/v1/scheduler/jobs/actions/reload");
  button.disabled = false;
  reloadDialog.close();
  const host = document.getElementById("page-notice");
  if (answer.ok) {
    const failed = Object.keys(answer.data.failed || {}).length > 0;
    showNotice(host, {
      kind: failed ? "warn" : "good",
      message: answer.message,
      details: reloadSummary(answer.data),
    });
  } else {
    showFailure(host, answer);
  }
  await refresh();
});

for (const button of document.querySelectorAll("dialog [data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
