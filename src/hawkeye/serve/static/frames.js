// The newest frames of all live pictures of this page, over one connection: a browser opens only six to a host, and a
// request for each picture of each source would soon be too many. What is shown decides what is asked for; frames that
// come while one is still being decoded wait in the network, and the server then skips them.
const AGAIN_MS = 2000;
const SILENT_MS = 12000; // the server says something at least every 5 s
const WIDTHS = [320, 640, 960, 1280, 1920]; // as the server encodes them

const pictures = new Set();
let connection = null; // AbortController of what is open now
let wanted = "";
let pending = 0;

/** Begin to hand frames to a picture, which has `source`, `wide()`, `visible()`, `take(about, blob)` and `gone(lost)`. */
export function follow(picture) {
  pictures.add(picture);
  changed();
}

export function leave(picture) {
  pictures.delete(picture);
  changed();
}

/** Something about what is to be shown may have changed. */
export function changed() {
  clearTimeout(pending);
  pending = setTimeout(renew, 60);
}

document.addEventListener("visibilitychange", changed);

function ask() {
  if (document.hidden) return "";
  const widest = new Map(); // the same source may be shown twice
  for (const picture of pictures) {
    if (!picture.visible()) continue;
    const width = WIDTHS.find((step) => step >= picture.wide()) || WIDTHS[WIDTHS.length - 1];
    widest.set(picture.source, Math.max(width, widest.get(picture.source) || 0));
  }
  return [...widest].sort().map(([source, width]) => `s=${encodeURIComponent(`${source}:${width}`)}`).join("&");
}

function renew() {
  const query = ask();
  if (query === wanted && (connection || !query)) return;
  wanted = query;
  connection?.abort();
  connection = query ? new AbortController() : null;
  if (connection) run(query, connection);
}

async function run(query, own) {
  while (!own.signal.aborted) {
    try {
      await read(query, own.signal);
    } catch {
      // told below
    }
    if (own.signal.aborted) return;
    for (const picture of pictures) picture.gone(true);
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

async function read(query, signal) {
  const attempt = new AbortController(); // of this connection alone: after a silence there is another one
  signal.addEventListener("abort", () => attempt.abort(), { once: true });
  let silence = setTimeout(() => attempt.abort(), SILENT_MS);
  try {
    const answer = await fetch(`${window.path_prefix || ""}/pages/frames?${query}`, { signal: attempt.signal, cache: "no-store" });
    if (!answer.ok) return;
    const reader = answer.body.getReader();
    let held = new Uint8Array(0);
    const upTo = async (length) => {
      while (held.length < length) {
        const { done, value } = await reader.read();
        if (done) throw new Error("closed");
        clearTimeout(silence);
        silence = setTimeout(() => attempt.abort(), SILENT_MS);
        const joined = new Uint8Array(held.length + value.length);
        joined.set(held);
        joined.set(value, held.length);
        held = joined;
      }
      const taken = held.slice(0, length);
      held = held.slice(length);
      return taken;
    };
    for (;;) {
      const length = new DataView((await upTo(4)).buffer).getUint32(0);
      const about = JSON.parse(new TextDecoder().decode(await upTo(length)));
      for (const picture of pictures) picture.gone(false);
      if (!about.bytes) continue; // only a sign of life
      const blob = new Blob([await upTo(about.bytes)], { type: "image/jpeg" });
      await Promise.all([...pictures].filter((p) => p.source === about.source).map((p) => p.take(about, blob)));
    }
  } finally {
    clearTimeout(silence);
    attempt.abort();
  }
}
