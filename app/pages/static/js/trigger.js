// The dialog that changes a job's trigger; shows the next five fires while the reader types.

import { callApi, text } from "./http.js";
import { acceptedLines, showFailure, showNotice } from "./notice.js";
import { refresh } from "./refresh.js";

const TYPING_PAUSE_MS = 300;
const PREVIEW_COUNT = 5;
const AMOUNTS = ["weeks", "days", "hours", "minutes", "seconds"];
const LIMITS = ["start_date", "end_date", "jitter"];

const dialog = document.getElementById("trigger-dialog");
const form = dialog.querySelector("form");
const fires = dialog.querySelector("[data-fires]");
const more = dialog.querySelector("[data-more]");
const words = dialog.querySelector("[data-words]");
const previewNotice = document.getElementById("preview-notice");
const saveNotice = document.getElementById("trigger-notice");

let jobId = "";
let noticeId = "";
let revision = "";
let openerId = "";
let typing = null;
let asking = null;

function chosenType() {
  return form.elements.trigger_type.value;
}

function payload() {
  const type = chosenType();
  const body = { trigger_type: type };
  const zone = form.elements.timezone.value.trim();
  if (zone) body.timezone = zone;
  const names = {
    cron: ["cron_expression", "week", ...LIMITS],
    interval: [...AMOUNTS, ...LIMITS],
    date: ["run_date"],
  }[type];
  for (const name of names) {
    const value = form.elements[name].value.trim();
    if (value) body[name] = value;
  }
  return body;
}

function isEmpty(body) {
  const given = { cron: ["cron_expression", "week"], interval: AMOUNTS, date: ["run_date"] }[body.trigger_type];
  return !given.some((name) => name in body);
}

function showFields() {
  for (const part of form.querySelectorAll("[data-for]")) part.hidden = part.dataset.for !== chosenType();
  more.hidden = chosenType() === "date";
}

function showFires(list) {
  fires.replaceChildren();
  for (const fire of list) {
    const item = document.createElement("li");
    const time = document.createElement("time");
    time.dateTime = fire.at;
    time.textContent = fire.at.slice(0, 19).replace("T", " ");
    const offset = document.createElement("span");
    offset.className = "soft small";
    offset.textContent = `UTC${fire.utc_offset}`;
    item.append(time, offset);
    if (fire.change) {
      const badge = document.createElement("span");
      badge.className = "badge badge-warn";
      badge.textContent = text(`change_${fire.change}`) + (fire.count > 1 ? ` ×${fire.count}` : "");
      item.append(badge);
    }
    fires.append(item);
  }
}

function clearPreview() {
  showFires([]);
  words.textContent = "";
  previewNotice.replaceChildren();
}

async function preview() {
  asking?.abort();
  asking = new AbortController();
  const body = payload();
  if (isEmpty(body)) {
    clearPreview(); // nothing was given yet: no reason to complain
    return;
  }
  let answer;
  try {
    answer = await callApi("POST", "/api/v1/scheduler/triggers/preview", {
      body: { ...body, count: PREVIEW_COUNT },
      signal: asking.signal,
    });
  } catch {
    return; // a newer preview took over
  }
  if (!answer.ok) {
    clearPreview();
    showNotice(previewNotice, { kind: "bad", message: answer.message, details: acceptedLines(answer) });
    return;
  }
  const list = answer.data.fires || [];
  showFires(list);
  words.textContent = answer.data.description || "";
  const warnings = answer.meta.warnings || [];
  if (warnings.length) {
    showNotice(previewNotice, { kind: "warn", message: warnings[0], details: warnings.slice(1) });
  } else if (list.length === 0) {
    showNotice(previewNotice, { kind: "warn", message: text("neverFires") });
  } else {
    previewNotice.replaceChildren();
  }
}

function previewSoon() {
  saveNotice.replaceChildren();
  clearTimeout(typing);
  typing = setTimeout(preview, TYPING_PAUSE_MS);
}

function fill(button) {
  const spec = JSON.parse(button.dataset.trigger);
  form.reset();
  form.elements.trigger_type.value = spec.type;
  form.elements.timezone.value = spec.timezone || "";
  form.elements.cron_expression.value = button.dataset.expression || "";
  for (const name of [...AMOUNTS, "week", "jitter"]) form.elements[name].value = spec[name] ?? "";
  for (const name of ["run_date", "start_date", "end_date"]) {
    form.elements[name].value = (spec[name] || "").slice(0, 19); // clock time; the zone is its own field
  }
  more.open = Boolean(spec.end_date || spec.jitter || spec.week);
  showFields();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-change-trigger]");
  if (!button) return;
  ({ jobId } = button.dataset);
  noticeId = button.dataset.answerIn;
  revision = button.dataset.revision;
  openerId = button.id;
  dialog.querySelector("[data-job-name]").textContent = button.dataset.jobName;
  saveNotice.replaceChildren();
  fill(button);
  dialog.showModal();
  preview();
});

form.addEventListener("input", () => {
  showFields();
  previewSoon();
});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector('button[type="submit"]');
  button.disabled = true;
  clearTimeout(typing);
  const answer = await callApi("PUT", `/api/v1/scheduler/jobs/${encodeURIComponent(jobId)}`, {
    body: payload(),
    ifMatch: `"${revision}"`, // what somebody else saved since the dialog opened must not be lost
  });
  button.disabled = false;
  if (!answer.ok) {
    previewNotice.replaceChildren(); // the refusal says the same, and more
    showFailure(saveNotice, answer);
    saveNotice.scrollIntoView({ block: "nearest" });
    return;
  }
  const warnings = answer.meta.warnings || [];
  showNotice(document.getElementById(noticeId), {
    kind: warnings.length ? "warn" : "good",
    message: answer.message,
    details: warnings,
  });
  await refresh(); // before closing: whoever opens the dialog again must meet the new trigger
  dialog.close();
  document.getElementById(openerId)?.focus(); // the button was replaced meanwhile, and the dialog gives back the old one
});

// Every zone that the browser knows, as suggestions; the server has the last word.
const zones = document.getElementById("time-zones");
for (const name of Intl.supportedValuesOf?.("timeZone") ?? []) {
  const option = document.createElement("option");
  option.value = name;
  zones.append(option);
}
