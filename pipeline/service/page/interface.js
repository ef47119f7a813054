// Asks the service's interface; what it refuses is an Error with the sentence that it says.
export class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

export async function ask(method, path, body) {
  const sent = { method, headers: {} };
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
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const problem = await answer.json().catch(() => ({ detail: `the service answers ${answer.status}` }));
  throw new Refused(answer.status, problem.detail);
}
