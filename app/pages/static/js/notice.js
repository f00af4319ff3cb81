// What an action answered, shown beside the thing it was done to.

import { text } from "./http.js";

/**
 * Puts one notice into `host` (an element with role=status), in place of an earlier one.
 * kind: good, warn or bad. details: further lines. link: {href, label}.
 */
export function showNotice(host, { kind, message, details = [], requestId = "", link = null }) {
  const notice = document.createElement("p");
  notice.className = `notice notice-${kind}`;
  notice.append(message);
  if (link) {
    const anchor = document.createElement("a");
    anchor.href = link.href;
    anchor.textContent = link.label;
    notice.append(" ", anchor);
  }
  const lines = [...details];
  if (requestId) lines.push(`${text("requestId")} ${requestId}`);
  for (const line of lines) {
    const detail = document.createElement("span");
    detail.className = "notice-detail";
    detail.textContent = line;
    notice.append(detail);
  }
  host.replaceChildren(notice);
}

/** What the envelope's context says is accepted, as a line; none when it says nothing. */
export function acceptedLines(answer) {
  const { accepted } = answer.context;
  if (accepted === undefined) return [];
  const shown = Array.isArray(accepted) ? accepted.join(", ") : accepted;
  return [`${text("accepted")} ${typeof shown === "string" ? shown : JSON.stringify(shown)}`];
}

/** The notice of a failed call, with what the envelope's context says of the field. */
export function showFailure(host, answer) {
  const details = acceptedLines(answer);
  const { field, value } = answer.context;
  if (field) {
    const held = value === undefined || value === null ? "" : ` = ${JSON.stringify(value)}`;
    details.unshift(`${text("field")} ${field}${held}`);
  }
  showNotice(host, { kind: "bad", message: answer.message, details, requestId: answer.requestId });
}
