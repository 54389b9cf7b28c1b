// The preferences of this device: the language, the unit of temperatures, and the clock. Each follows the locale until
// the user chooses.

import { language, locale } from "./texts.js";

const KEY = "brewos_relay_preferences";
const COOKIE = "brewos_relay_language";
const YEAR_S = 365 * 24 * 3600;
// The countries where people use °F, by CLDR.
const FAHRENHEIT = new Set(["BS", "BZ", "FM", "GU", "KY", "LR", "MH", "PR", "PW", "US", "VI"]);

const read = () => localStorage.getItem(KEY) ?? "{}";
const atLoad = read();

/** Return the choices of the user: `language`, `temperature` and `clock`, as far as there are any. */
export function choices() {
  try {
    return JSON.parse(read()) ?? {};
  } catch {
    return {};
  }
}

/** Store a choice; "" for none. The next page follows it. */
export function choose(name, value) {
  const { [name]: _, ...others } = choices();
  localStorage.setItem(KEY, JSON.stringify(value ? { ...others, [name]: value } : others));
  if (name === "language") writeCookie(value);
}

/** Tell the server the language, which it needs to render pages. */
function writeCookie(value) {
  const secure = location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `${COOKIE}=${value}; Path=/; Max-Age=${value ? YEAR_S : 0}; SameSite=Lax${secure}`;
}

function region() {
  const own = new Intl.Locale(locale);
  // English is spoken everywhere, also by users whose browsers name another country.
  return own.region ?? (language === "en" ? new Intl.Locale(navigator.language).region : own.maximize().region);
}

/** What the locale suggests. */
export const suggested = {
  temperature: FAHRENHEIT.has(region()) ? "fahrenheit" : "celsius",
  clock: new Intl.DateTimeFormat(locale, { hour: "numeric" }).resolvedOptions().hour12 ? "12" : "24",
};

/** What pages use: "celsius" or "fahrenheit", and "12" or "24". */
export const temperature = oneOf(["celsius", "fahrenheit"], choices().temperature, suggested.temperature);
export const hours = oneOf(["12", "24"], choices().clock, suggested.clock);

function oneOf(possible, chosen, otherwise) {
  return possible.includes(chosen) ? chosen : otherwise;
}

// Some browsers keep the cookies of scripts for a week only.
if (choices().language) writeCookie(choices().language);

// Another tab, or a page before this one in the history, may have other preferences.
addEventListener("storage", ({ key }) => key === KEY && location.reload());
addEventListener("pageshow", ({ persisted }) => persisted && read() !== atLoad && location.reload());
