// What the server is asked, and what it answers.

export class Refused extends Error {}

async function answered(response) {
  if (response.ok) return response;
  let told = `The server answered ${response.status}.`;
  if (response.headers.get("content-type")?.startsWith("application/json")) told = (await response.json()).error;
  else if (response.status === 401) told = "The session has ended: open the address that retroscan review printed.";
  throw new Refused(told);
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer. Is retroscan review still running?");
  }
  return answered(response);
}

export const get = async (path, parameters = {}, signal = undefined) =>
  (await ask(`${path}?${new URLSearchParams(parameters)}`, { signal })).json();

export const post = async (path, body = {}) =>
  (await ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) })).json();

// A picture's or a heatmap's samples: {height, width, ..., values}.
export async function samples(path, parameters, signal) {
  const response = await ask(`${path}?${new URLSearchParams(parameters)}`, { signal });
  const told = JSON.parse(response.headers.get("x-samples"));
  const body = await response.arrayBuffer();
  // Little-endian, as all browsers' machines are.
  return { ...told, values: told.colour ? new Uint8Array(body) : new Uint16Array(body) };
}
