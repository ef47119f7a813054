// What people decide about the leads of a search: in the case that the search names, if there is one, else of the search itself.
import { ask, asked, Refused } from "/page/interface.js";

export const WORDS = { same: "Same person", different: "Different", unsure: "Unsure" };
export const MARKS = { same: "✓ same", different: "✗ different", unsure: "? unsure" };

export class Decisions {
  constructor(search) {
    this.search = search;
    this.of = new Map(); // video id -> decision
    this.tags = new Map(); // video id -> ETag of the decision that stands in the case
    this.path = null; // of the case
  }

  async load(leads) {
    for (const lead of leads) if (lead.decision) this.of.set(lead.video_id, lead.decision);
    if (!this.search.case) return;
    const path = `/cases/${encodeURIComponent(this.search.case)}`;
    const query = `?${new URLSearchParams({ gallery: this.search.gallery })}`;
    try {
      const found = await ask("GET", path + query);
      [this.path, this.query] = [path, query];
      for (const each of found.leads) {
        this.tags.set(each.video_id, `"${each.tag}"`);
        if (each.decision) this.of.set(each.video_id, each.decision);
      }
    } catch (error) {
      if (!(error instanceof Refused) || error.status !== 404) throw error; // there is no case of that name: only its records say it
    }
  }

  get(lead) {
    return this.of.get(lead.video_id) ?? null;
  }

  // What is shown from now on; `set` makes it last.
  note(lead, decision) {
    if (decision === null) this.of.delete(lead.video_id);
    else this.of.set(lead.video_id, decision);
  }

  async set(lead, decision) {
    if (this.path === null) {
      await ask("PUT", `/searches/${encodeURIComponent(this.search.search_id)}/leads/${lead.rank}/decision`, { decision });
    } else {
      const tag = this.tags.get(lead.video_id);
      const match = tag ? { "if-match": tag } : { "if-none-match": "*" };
      const body = { decision, search: this.search.search_id };
      const path = `${this.path}/decisions/${encodeURIComponent(lead.video_id)}${this.query}`;
      const answer = await asked("PUT", path, body, match).catch(async (error) => {
        if (error.status === 412) await this.load([]); // somebody was faster: from here on with what they said
        throw error;
      });
      if (decision === null) this.tags.delete(lead.video_id);
      else this.tags.set(lead.video_id, answer.headers.get("etag"));
    }
  }

  // Video ids of which this was said.
  said(decision) {
    return [...this.of].filter(([, each]) => each === decision).map(([id]) => id);
  }
}
