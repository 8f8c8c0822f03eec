// Requests to the server, and parsing of its responses.

/** Return the server's response as JSON; throw its reason if it refuses. */
export async function ask(path, { method = "GET", body, signal } = {}) {
  const headers = method === "GET" ? {} : { "X-Isopose": "1" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  if (!answer.ok) throw new Error(reason(await answer.text(), answer.status));
  return answer.status === 204 ? null : answer.json();
}

/** Return the reason in an error response, which is JSON or plain text. */
function reason(text, status) {
  try {
    const detail = JSON.parse(text).detail;
    return typeof detail === "string" ? detail : "the server did not understand the request";
  } catch {
    return text || `the server answered ${status}`;
  }
}

/** Send a file; progress is called with the fraction sent, which fetch does not report. */
export function send(file, progress) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    request.open("POST", `/api/jobs?filename=${encodeURIComponent(file.name.slice(-200))}`);
    request.setRequestHeader("X-Isopose", "1");
    request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
    request.onload = () => {
      if (request.status === 201) return done(JSON.parse(request.responseText).number);
      failed(new Error(reason(request.responseText, request.status)));
    };
    request.onerror = () => failed(new Error("the server cannot be reached"));
    request.send(file);
  });
}

/** Return the panels of one slice by name: {shape: [rows, columns], data: typed array}. */
export async function panels(path, signal) {
  const answer = await fetch(path, { signal });
  if (!answer.ok) throw new Error(reason(await answer.text(), answer.status));
  const bytes = await answer.arrayBuffer();
  const length = new DataView(bytes).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
  const out = {};
  for (const { name, shape, type, offset } of head) {
    const count = shape[0] * shape[1];
    const Kind = type === "int16" ? Int16Array : Uint8Array;
    out[name] = { shape, data: new Kind(bytes, 4 + length + offset, count) };
  }
  return out;
}

export function rgb(color) {
  return [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
}
