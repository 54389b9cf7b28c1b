// The texts of the page. The server renders the page in one language, and adds the texts of its scripts.

const { texts, refusals } = JSON.parse(document.getElementById("texts").textContent);

/** The language of the page, like "de". */
export const language = document.documentElement.lang;

/** The language of the page as the user writes it, like "de-AT". Numbers and dates follow it. */
export const locale = navigator.languages.find((one) => one.split("-")[0] === language) ?? (language === "en" ? "en-GB" : language);

const plurals = new Intl.PluralRules(language);
const numbers = new Intl.NumberFormat(locale, { useGrouping: false });
const ROLES = { owner: "role.owner", member: "role.member", viewer: "role.viewer" };
const OUTCOMES = {
  delivered: "outcome.delivered", queued: "outcome.queued", expired: "outcome.expired",
  device_offline: "outcome.offline", forbidden: "outcome.forbidden",
};
const TYPES = { dual_boiler: "type.dual_boiler", single_boiler: "type.single_boiler", heat_exchanger: "type.heat_exchanger" };

/** Return a text of the catalogue with its values. A text with plural forms takes the form for `count`. */
export function text(key, values = {}) {
  const found = texts[key] ?? key;
  const pattern = typeof found === "string" ? found : (found[plurals.select(values.count)] ?? found.other);
  return fill(pattern, values);
}

/** Return the text of a value that the machine or server sent, from a table of keys. Other values are shown as they are. */
export function textFrom(table, value) {
  return Object.hasOwn(table, value) ? text(table[value]) : String(value ?? "").replaceAll("_", " ");
}

function fill(pattern, values) {
  return pattern.replace(/\{(\w+)\}/g, (mark, name) => {
    const value = values[name] ?? mark;
    return typeof value === "number" ? numbers.format(value) : value;
  });
}

/** Join texts, like "a, b or c". `type` is "conjunction" or "disjunction". */
export const list = (parts, type) => new Intl.ListFormat(locale, { type }).format(parts);

/** Return the name of a role, with its end. */
export function roleName(role, until = null) {
  const name = textFrom(ROLES, role);
  return until ? text("role.until", { role: name, time: until }) : name;
}

/** Return the outcome of a command in words. */
export const outcomeName = (outcome) => textFrom(OUTCOMES, outcome);

/** Return the name of a type of machine, or undefined. */
export const machineTypeName = (type) => type && textFrom(TYPES, type);

/** Translate the reason of the server for a refusal, which is English. */
export function refusalText(reason) {
  return translated(reason) ?? text("refusal.other", { problem: reason });
}

// The server's sentences are the keys here. `{name}` in one of them stands for any words, translated in turn.
const known = refusals.map(([english, own]) => {
  const names = [];
  const pattern = english.split(/\{(\w+)\}/).map((part, number) => {
    if (number % 2 === 0) return part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    names.push(part);
    return "(.+)";
  });
  return { own, names, pattern: new RegExp(`^${pattern.join("")}$`, "s") };
});

function translated(reason) {
  for (const { own, names, pattern } of known) {
    const found = reason.match(pattern);
    if (!found) continue;
    return fill(own, Object.fromEntries(names.map((name, number) => [name, translated(found[number + 1]) ?? found[number + 1]])));
  }
  return undefined;
}
