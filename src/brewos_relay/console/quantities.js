// The quantities of a shot, in the order of their charts.

import { degrees, fromCelsius, number } from "./format.js";

/** `floor` and `ceiling` are the least range of an axis. `convert` changes a value of the machine for the page. */
export const QUANTITIES = [
  { name: "pressure", unit: "bar", digits: 1, floor: 0, ceiling: 10, convert: (value) => value },
  { name: "flow", unit: "g/s", digits: 1, floor: 0, ceiling: 4, convert: (value) => value },
  { name: "weight", unit: "g", digits: 1, floor: 0, ceiling: 40, convert: (value) => value },
  { name: "temperature", unit: degrees, digits: 1, floor: fromCelsius(85), ceiling: fromCelsius(100), convert: fromCelsius },
];

/** Format a converted value with the unit of its quantity. */
export const withUnit = ({ digits, unit }, value) => `${number(value, digits)} ${unit}`;
