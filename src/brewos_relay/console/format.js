// Numbers, temperatures, times and dates in the format of the user.

import { hours, temperature } from "./preferences.js";
import { language, locale } from "./texts.js";

const CLOCK = hours === "12" ? { hour: "numeric", hourCycle: "h12" } : { hour: "2-digit", hourCycle: "h23" };
const isFahrenheit = temperature === "fahrenheit";

/** The unit of temperatures on pages. Machines and the API use °C. */
export const degrees = isFahrenheit ? "°F" : "°C";
/** Convert a temperature of a machine for the page, and back. */
export const fromCelsius = (value) => (isFahrenheit ? value * 1.8 + 32 : value);
export const toCelsius = (value) => (isFahrenheit ? Math.round((value - 32) / 0.018) / 100 : value);

const numberFormats = new Map();

/** Format a number with `least` to `most` digits after the point. */
export function number(value, least = 0, most = least) {
  const key = `${least} ${most}`;
  if (!numberFormats.has(key)) {
    numberFormats.set(key, new Intl.NumberFormat(locale, { minimumFractionDigits: least, maximumFractionDigits: most, useGrouping: false }));
  }
  return numberFormats.get(key).format(value);
}

/** Format a day (ISO 8601). */
export const day = (iso) => new Date(iso).toLocaleDateString(locale, { dateStyle: "medium" });

/** Format a time (ISO 8601, or ms since 1970) as a day with a clock time. */
export const dateTime = (at) => new Date(at).toLocaleString(locale, { day: "numeric", month: "short", year: "numeric", minute: "2-digit", ...CLOCK });

/** Format a time (ms since 1970) as a clock time without seconds. */
export const clock = (at) => new Date(at).toLocaleTimeString(locale, { minute: "2-digit", ...CLOCK });

/** Format a time (ISO 8601, or ms since 1970) as a clock time with seconds, and with the day if it is not today. */
export function clockTime(at) {
  return new Date(at).toLocaleString(locale, { ...dayOf(at), minute: "2-digit", second: "2-digit", ...CLOCK });
}

/** Format a time (ISO 8601, or ms since 1970) as a clock time, with the day if it is not today. */
export const shortTime = (at) => new Date(at).toLocaleString(locale, { ...dayOf(at), minute: "2-digit", ...CLOCK });

function dayOf(at) {
  return new Date(at).toDateString() === new Date().toDateString() ? {} : { day: "numeric", month: "short" };
}

/** Format a time (ISO 8601) relative to now, like "3 minutes ago". */
export function relativeTime(iso) {
  const seconds = (Date.parse(iso) - Date.now()) / 1000;
  const words = new Intl.RelativeTimeFormat(language, { numeric: "auto" });
  for (const [unit, length] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (Math.abs(seconds) >= length) return words.format(Math.round(seconds / length), unit);
  }
  return words.format(Math.round(seconds), "second");
}
