// Sends images in small groups, a few groups at a time, so that thousands of photos need little memory and can be
// canceled. Knows nothing of models and pages.

/** Consecutive entries in groups of at most `maxCount` entries and `maxBytes` bytes; a larger file is alone. */
export function inGroups(entries, maxCount, maxBytes) {
  const groups = [];
  let group = [], bytes = 0;
  for (const entry of entries) {
    if (group.length > 0 && (group.length >= maxCount || bytes + entry.file.size > maxBytes)) {
      groups.push(group);
      group = [];
      bytes = 0;
    }
    group.push(entry);
    bytes += entry.file.size;
  }
  return group.length > 0 ? [...groups, group] : groups;
}

/** Call `work(group)` for all groups, `inFlight` at once, until done or until `signal` is aborted. */
export async function runGroups(groups, inFlight, work, signal) {
  let next = 0;
  const worker = async () => {
    while (next < groups.length && !signal.aborted) await work(groups[next++]);
  };
  await Promise.all(Array.from({ length: Math.min(inFlight, groups.length) }, worker));
}
