// Numbers, times and dates in the format of the user.

import { language, locale } from "./texts.js";

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
export const dateTime = (at) => new Date(at).toLocaleString(locale, { dateStyle: "medium", timeStyle: "short" });

/** Format a time (ms since 1970) as a clock time, like "9:41". */
export const clock = (at) => new Date(at).toLocaleTimeString(locale, { hour: "2-digit", minute: "2-digit", hour12: false });

/** Format a time (ISO 8601, or ms since 1970) as a clock time with seconds, and with the day if it is not today. */
export function clockTime(at) {
  const time = new Date(at);
  const date = time.toDateString() === new Date().toDateString() ? {} : { day: "numeric", month: "short" };
  return time.toLocaleString(locale, { ...date, hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
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
