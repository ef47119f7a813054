// Asks the service's interface; what it refuses is an Error with the sentence that it says.
export class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

// The answer as it came, of which `ask` gives the content. headers: further ones.
export async function asked(method, path, body, headers = {}) {
  const sent = { method, headers: { ...headers }, priority: method === "GET" ? "auto" : "high" }; // before pictures that wait
  if (body instanceof Blob) {
    sent.body = body;
    sent.headers["content-type"] = "application/octet-stream";
  } else if (body !== undefined) {
    sent.body = JSON.stringify(body);
    sent.headers["content-type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(`/api/v1${path}`, sent);
  } catch {
    throw new Error("the service does not answer; is it still running?");
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

export async function ask(method, path, body) {
  const answer = await asked(method, path, body);
  return answer.status === 204 ? null : answer.json();
}

export async function refusal(answer) {
  const problem = await answer.json().catch(() => ({ detail: `the service answers ${answer.status}` }));
  return new Refused(answer.status, problem.detail);
}

// The path of a video of a gallery, whose id may hold anything.
export const videoPath = (gallery, video, rest) => `/galleries/${encodeURIComponent(gallery)}/videos/${encodeURIComponent(video)}/${rest}`;
