"use strict";
// Reads /api/v1/status once a second, the list of images and what the other nodes say every ten. With a token, which comes after `#token=` in the page's
// address and is never part of a request's path, the agent adds names. `#token=TOKEN&explain=IMAGE` explains an image at once.

const EVERY = 1000, LIMIT = 5000, SLOW_EVERY = 10000, EXPLAIN_LIMIT = 20000;
const element = id => document.getElementById(id);
const fragment = new URLSearchParams(location.hash.slice(1)), given = fragment.get("token");
if (given) sessionStorage.setItem("token", given);
const token = sessionStorage.getItem("token");
let lastAnswer = Date.now(), lastSlow = 0;

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; bytes >= 1024 && unit < units.length - 1; unit++) bytes /= 1024;
  return (unit ? bytes.toFixed(1) : bytes) + " " + units[unit];
}

function ago(second) {
  const seconds = Math.max(0, Math.round(Date.now() / 1000 - second));
  if (seconds < 60) return seconds + " s ago";
  if (seconds < 3600) return Math.floor(seconds / 60) + " min ago";
  if (seconds < 86400) return Math.floor(seconds / 3600) + " h ago";
  return Math.floor(seconds / 86400) + " d ago";
}

const many = (count, word) => count + " " + word + (count === 1 ? "" : "s");
const text = (id, value) => { element(id).textContent = value; };
const bar = (id, value, max) => { element(id).max = max || 1; element(id).value = Math.min(value, max || 1); };

function rows(id, cells, nothing) {
  const body = element(id), columns = body.parentElement.rows[0].cells.length;
  body.replaceChildren(...(cells.length ? cells : [[nothing]]).map(values => {
    const row = document.createElement("tr");
    for (const value of values) row.insertCell().textContent = value;
    if (!cells.length) row.cells[0].colSpan = columns;
    return row;
  }));
}

function blocks(id, all, nothing) {
  element(id).replaceChildren(...(all.length ? all : [{ head: nothing }]).map(one => {
    const block = document.createElement("div");
    block.append(one.head);
    if (one.max) {
      const progress = document.createElement("progress");
      progress.max = one.max;
      progress.value = one.value;
      block.append(progress);
    }
    for (const note of one.notes || []) {
      const line = document.createElement("p");
      line.append(Object.assign(document.createElement("small"), { textContent: note, className: one.bad ? "bad" : "" }));
      block.append(line);
    }
    return block;
  }));
}

function endpoint(registry, one) {
  const rate = one.rate, notes = [];
  if (rate.throttledForSeconds) notes.push("takes no requests for " + rate.throttledForSeconds + " s (429)");
  if (one.circuitOpenForSeconds) notes.push("gets no requests for " + one.circuitOpenForSeconds + " s after failures");
  if (rate.limit) notes.push(rate.remaining + " of " + rate.limit + " requests left" +
    (rate.refillsInSeconds ? ", refilled in " + Math.ceil(rate.refillsInSeconds / 60) + " min at the latest" : ""));
  if (one.lastError) notes.push("last error " + one.lastErrorSecondsAgo + " s ago: " + one.lastError);
  const bad = Boolean(rate.throttledForSeconds || one.circuitOpenForSeconds);
  return { head: registry + (one.endpoint === registry ? "" : " at " + one.endpoint), max: rate.limit, value: rate.remaining || 0, notes, bad };
}

function download(one) {
  const from = one.fromPeers && one.fromRegistry ? "peers and registry" : one.fromPeers ? "peers" : one.fromRegistry ? "registry" : "waiting";
  const total = one.size || one.have;
  return { head: (one.repository || "for a peer") + " " + one.digest.slice(0, 19), max: total || 1, value: one.have,
    notes: [size(one.have) + " of " + size(total) + ", " + from + ", " + many(one.readers, "client")] };
}

function summary(status) {
  const store = status.store, requests = status.requests, bytes = status.bytes, arriving = status.arriving;
  text("version", status.version);
  text("store-used", size(store.bytes) + (store.allowedBytes ? " of " + size(store.allowedBytes) : ""));
  bar("store-bar", store.allowedBytes ? store.bytes : 0, store.allowedBytes);
  text("store-note", store.trouble ? "trouble: " + store.trouble : many(store.blobs, "blob"));
  element("store-note").className = store.trouble ? "bad" : "";
  const found = requests.hits + requests.joined, all = found + requests.misses;
  text("hit-rate", all ? Math.round(100 * found / all) + " %" : "–");
  text("hit-note", requests.total ? many(requests.total, "request") + ", last " + requests.lastSecondsAgo + " s ago" : "no request has come yet");
  const runtime = status.runtime;
  element("runtime-tile").hidden = !runtime;
  if (runtime) {
    text("runtime", runtime.usesAgent ? "uses Hearth" : runtime.usesAgent === false ? "does not use Hearth" : "not proved");
    text("runtime-note", runtime.message || runtime.reason);
    element("runtime-note").className = runtime.usesAgent === false ? "bad" : "";
  }
  text("arriving", arriving.size ? Math.floor(100 * arriving.have / arriving.size) + " %" : "nothing");
  bar("arriving-bar", arriving.have, arriving.size);
  const count = Array.isArray(status.transfers) ? status.transfers.length : status.transfers;
  text("arriving-note", many(count, "download") + ", " + size(arriving.have) + " of " + size(arriving.size));
  text("served", size(bytes.served) + " served");
  text("bytes-note", size(bytes.fromPeers) + " from peers, " + size(bytes.fromRegistries) + " from registries, " + size(bytes.toPeers) + " to peers");
  const peers = status.peers, skipped = Array.isArray(peers.skipped) ? peers.skipped : [];
  text("peers", peers.on ? peers.known : "off");
  const failing = Array.isArray(peers.skipped) ? peers.skipped.length : peers.skipped;
  text("peers-note", failing ? failing + " failed lately" + (skipped.length ? ": " + skipped.join(", ") : "") : peers.on ? "all answer" : "");
  element("peers-note").className = failing ? "bad" : "";
}

function prepull(sets) {
  const images = Array.isArray(sets) ? sets.flatMap(set => set.images) : null;
  const total = images ? images.length : sets.images;
  const of = state => images ? images.filter(image => image.state === state).length : sets[state.toLowerCase()];
  text("prepull", total ? of("Ready") + " of " + total : "nothing");
  bar("prepull-bar", of("Ready"), total);
  text("prepull-note", total ? of("Pulling") + " pulling, " + of("Waiting") + " waiting, " + of("Failed") + " failed" : "no image sets");
}

function names(status) {
  blocks("downloads", status.transfers.map(download), "none");
  blocks("registries", status.registries.flatMap(one => one.endpoints.map(at => endpoint(one.registry, at))), "none was asked yet");
  rows("sets", status.prepull.flatMap(set => set.images.map(image =>
    [set.set, image.image, image.state, image.progress + " %", image.message || image.reason || ""])), "none");
  rows("failures", status.recent.failures.map(one =>
    [ago(one.at) + (one.times > 1 ? " (" + one.times + " times)" : ""), one.subject, one.status + ": " + one.reason, one.request]), "none");
  rows("pulls", status.recent.pulls.map(one => [ago(one.at), one.image, one.source, one.millis + " ms"]), "none");
}

function images(all) {
  rows("images", all.map(image => {
    const name = (image.names.find(one => !one.name.includes("@")) || image.names[0] || { name: image.digest }).name;
    const state = (image.complete ? "complete" : "incomplete") + (image.pinned ? ", pinned" : "");
    return [name, size(image.bytes), ago(image.lastUsed), state];
  }), "none");
}

// Nodes x image sets. A node may have sets that this one has not: only their hashes are known then.
function cluster(view) {
  element("cluster").hidden = view.nodes < 2;
  const silent = view.asked - view.answered, notes = [view.answered + " of " + many(view.nodes, "node") + " answer"];
  if (view.asked < view.nodes) notes.push("the first " + view.asked + " were asked");
  notes.push(view.warm + " with all their image sets", size(view.bytes) + " stored");
  if (view.inTrouble) notes.push(view.inTrouble + " with disk trouble");
  text("cluster-note", notes.join(", "));
  element("cluster-note").className = silent || view.inTrouble ? "bad" : "";
  element("cluster-grid").hidden = !view.grid;
  if (!view.grid) return;
  const sets = Object.keys(view.sets).sort((a, b) => (view.sets[a] || "~" + a).localeCompare(view.sets[b] || "~" + b));
  element("cluster-head").replaceChildren(...["Node", "Version", "Store", ...sets.map(set => view.sets[set] || "another set " + set.slice(0, 6))]
    .map(name => Object.assign(document.createElement("th"), { textContent: name })));
  element("cluster-nodes").replaceChildren(...view.grid.map(({ node, state }) => {
    const row = document.createElement("tr");
    const cell = (value, look) => Object.assign(row.insertCell(), { textContent: value, className: look || "" });
    cell(node);
    if (!state) {
      cell("does not answer", "bad").colSpan = 2 + sets.length;
      return row;
    }
    cell(state.version);
    cell(size(state.bytes) + (state.trouble ? ", disk trouble" : ""), state.trouble ? "bad" : "");
    for (const set of sets) {
      const at = state.sets[set];
      if (at) cell(at.here + " of " + at.images + (at.failed ? ", " + at.failed + " failed" : ""), at.failed ? "bad" : at.here < at.images ? "" : "good");
      else cell("–");
    }
    return row;
  }));
}

async function read(path, limit = LIMIT) {
  const headers = token ? { Authorization: "Bearer " + token } : {};
  const answer = await fetch(path, { headers, cache: "no-store", signal: AbortSignal.timeout(limit) });
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error || "HTTP " + answer.status);
  return answer.json();
}

// A document as indented lines.
function outline(value, indent = "") {
  if (value === null || typeof value !== "object") return " " + value + "\n";
  const entries = Object.entries(value).filter(([, one]) => one !== null);
  if (!entries.length) return " none\n";
  return "\n" + entries.map(([key, one]) => indent + (Array.isArray(value) ? "-" : key + ":") + outline(one, indent + "  ")).join("");
}

// Asks peers too, so it may take longer than the rest.
async function explain(name) {
  text("advice", "asking the agent");
  text("explanation", "");
  element("advice").className = "";
  try {
    const { advice, ...found } = await read("api/v1/explain?name=" + encodeURIComponent(name), EXPLAIN_LIMIT);
    text("advice", advice);
    text("explanation", outline(found).trim());
  } catch (error) {
    text("advice", error.message);
    element("advice").className = "bad";
  }
}

async function refresh() {
  try {
    const status = await read("api/v1/status"), named = Array.isArray(status.transfers);
    summary(status);
    prepull(status.prepull);
    element("named").hidden = !named;
    element("hidden-names").hidden = named;
    if (named) names(status);
    if (Date.now() - lastSlow > SLOW_EVERY) {
      lastSlow = Date.now();
      if (named) images(await read("api/v1/images"));
      if (status.peers.on) cluster(await read("api/v1/cluster"));
    }
    lastAnswer = Date.now();
    text("state", token && !named ? "live; the token is not accepted" : "live");
    element("state").className = token && !named ? "bad" : "";
  } catch (error) {
    text("state", "no answer for " + Math.round((Date.now() - lastAnswer) / 1000) + " s: " + error.message);
    element("state").className = "bad";
  }
}

async function run() {
  for (;;) {
    if (!document.hidden) await refresh();
    await new Promise(wake => setTimeout(wake, EVERY));
  }
}

element("explain").addEventListener("submit", event => {
  event.preventDefault();
  explain(element("explain").elements.image.value);
});
if (token && fragment.get("explain")) {
  element("explain").elements.image.value = fragment.get("explain");
  explain(fragment.get("explain"));
}
run();
