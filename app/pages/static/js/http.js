// Calls to the JSON API: adds the CSRF token, reads the envelope, and sends the reader to the login when the
// session has ended.

const texts = JSON.parse(document.documentElement.dataset.texts);

/** A text of the page's language by its key (see base.html). */
export function text(key) {
  return texts[key];
}

function tokenElement() {
  return document.querySelector('meta[name="csrf-token"]');
}

async function renewToken() {
  const response = await fetch("/api/v1/auth/csrf-token", { headers: { Accept: "application/json" } });
  if (!response.ok) return false;
  const envelope = await response.json();
  tokenElement().content = envelope.data.csrf_token;
  return true;
}

const REPEAT_AFTER_MS = [500, 1500, 3000]; // a scheduler that is restarted is back within some seconds

/** A key for one request of the reader's: with it the request may be sent again and is carried out once. */
export function newKey() {
  // Not crypto.randomUUID: pages that come over plain http do not have it.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function send(method, path, { body, signal, ifMatch, idempotencyKey }) {
  const headers = {
    Accept: "application/json",
    "Accept-Language": document.documentElement.lang,
    "X-CSRFToken": tokenElement().content,
  };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (ifMatch) headers["If-Match"] = ifMatch;
  if (idempotencyKey) headers["Idempotency-Key"] = idempotencyKey;
  const response = await fetch(path, {
    method,
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    signal,
  });
  let envelope = {};
  try {
    envelope = await response.json();
  } catch {
    // An answer that is no envelope comes from something between us and the app; the status has to do.
  }
  return { response, envelope };
}

/** Goes to the login page; the login comes back to where the reader is. */
export function goToLogin() {
  const here = window.location.pathname + window.location.search;
  window.location.assign(`/login?next=${encodeURIComponent(here)}`);
}

/** Sends it again where that is harmless: when nobody answered, or nobody was there to act on it. */
async function sendUntilAnswered(method, path, options) {
  for (const pause of options.idempotencyKey ? REPEAT_AFTER_MS : []) {
    try {
      const answer = await send(method, path, options);
      if (answer.response.status !== 503) return answer;
    } catch (error) {
      if (error.name === "AbortError") throw error;
    }
    await new Promise((resolve) => {
      setTimeout(resolve, pause);
    });
  }
  return send(method, path, options);
}

/**
 * One call. Resolves to {ok, status, code, message, requestId, data, meta, context}; rejects only when aborted.
 * `ifMatch` is the ETag that the thing must still have. `idempotencyKey` (see newKey) lets the call be repeated until
 * it is answered. `stayOn401` is for the login itself, where 401 means a wrong password.
 */
export async function callApi(method, path, { stayOn401 = false, ...options } = {}) {
  let answer;
  try {
    answer = await sendUntilAnswered(method, path, options);
    if (answer.envelope.message_code === "CSRF_INVALID" && (await renewToken())) {
      answer = await send(method, path, options); // the token ages, the session may be younger than the page
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return { ok: false, status: 0, code: "", message: text("unreachable"), requestId: "", context: {} };
  }
  const { response, envelope } = answer;
  if (response.status === 401 && !stayOn401) {
    goToLogin();
  }
  return {
    ok: response.ok,
    status: response.status,
    code: envelope.message_code || "",
    message: envelope.message || `${text("failed")} (HTTP ${response.status})`,
    requestId: envelope.request_id || (response.ok ? "" : response.headers.get("X-Request-ID") || ""),
    data: envelope.data,
    meta: envelope.meta || {},
    context: envelope.context || {},
  };
}
