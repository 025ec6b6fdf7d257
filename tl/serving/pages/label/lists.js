// How a shown list of images takes up news without a jump. Pure: lists are arrays of ids.

/** The queue `next`: the first `seen` images stay in their order if they are open; the newest choice follows. */
export function refillQueue(shown, fresh, isOpen, seen) {
  return extendRanked(shown.slice(0, seen), fresh, isOpen);
}

/** A ranked list: what is shown and still belongs to it keeps its place; new images come at the end. */
export function extendRanked(shown, fresh, belongs) {
  const kept = shown.filter(belongs), known = new Set(kept);
  return [...kept, ...fresh.filter((id) => !known.has(id))];
}

/** Put images back, each at the place that it had. `places`: id -> index. */
export function putBack(shown, ids, places) {
  const found = [...shown];
  for (const id of [...ids].sort((one, other) => (places.get(one) ?? 0) - (places.get(other) ?? 0))) {
    if (!found.includes(id)) found.splice(Math.min(places.get(id) ?? 0, found.length), 0, id);
  }
  return found;
}

/** Classes that a typed text may mean: the same name, then names that start with it, then words within names. */
export function matchClasses(names, typed) {
  const text = typed.trim().toLowerCase();
  if (text === "") return [];
  const rank = (name) => {
    const low = name.toLowerCase();
    return low === text ? 0 : low.startsWith(text) ? 1 : low.split(/[\s_.-]+/).some((word) => word.startsWith(text)) ? 2 : 3;
  };
  return names.filter((name) => rank(name) < 3).sort((one, other) => rank(one) - rank(other));
}

/** Images by what they are suggested as: class -> ids. */
export function bySuggestion(records) {
  const groups = new Map();
  for (const { id, suggestion } of records) {
    if (!suggestion) continue;
    if (!groups.has(suggestion)) groups.set(suggestion, []);
    groups.get(suggestion).push(id);
  }
  return groups;
}
