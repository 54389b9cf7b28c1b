// The state of a machine: merges its messages, and reads the merged status as plain values.

/** The texts of the states of a machine. */
export const STATES = {
  init: "state.init", idle: "state.idle", heating: "state.heating", ready: "state.ready", brewing: "state.brewing",
  fault: "state.fault", safe: "state.safe", eco: "state.eco",
};

const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);
const text = (value) => (typeof value === "string" ? value : null);
const isGroup = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** Return the status after a message: a `status` replaces it, a `status_delta` changes the values that it contains. */
export function mergeStatus(status, message) {
  const { type, seq, ...said } = message;
  if (type === "status") return said;
  const merged = { ...status };
  for (const [name, value] of Object.entries(said)) {
    merged[name] = isGroup(value) && isGroup(merged[name]) ? { ...merged[name], ...value } : value;
  }
  return merged;
}

/** Read a status. Missing values are null. */
export function readStatus(status) {
  const { machine = {}, temps = {}, power = {}, scale = {}, shot } = status ?? {};
  return {
    state: text(machine?.state),
    mode: text(machine?.mode),
    isBrewing: machine?.isBrewing === true || machine?.state === "brewing" || shot?.active === true,
    onSince: number(machine?.machineOnTimestamp),
    lastShotAt: number(machine?.lastShotTimestamp),
    brew: number(temps?.brew?.current),
    brewTarget: number(temps?.brew?.setpoint),
    steam: number(temps?.steam?.current),
    steamTarget: number(temps?.steam?.setpoint),
    group: number(temps?.group),
    pressure: number(status?.pressure),
    power: number(power?.current),
    todayKwh: number(power?.todayKwh),
    hasScale: scale?.connected === true,
    weight: number(shot?.active ? shot.weight : scale?.weight),
    flow: number(shot?.active ? shot.flowRate : scale?.flowRate),
    targetWeight: number(scale?.bbw?.targetWeight),
    tank: text(status?.water?.tankLevel),
    brewCount: number(status?.cleaning?.brewCount),
    cleaningDue: status?.cleaning?.reminderDue === true,
    rssi: number(status?.wifi?.rssi),
  };
}

/** Return the status after the flat message of an old machine, which may leave values out. */
export function mergeOldStatus(status, message) {
  const said = (group) => Object.fromEntries(Object.entries(group).filter(([, value]) => value !== undefined));
  const brew = said({ current: message.brewTemp, setpoint: message.brewSetpoint });
  const steam = said({ current: message.steamTemp, setpoint: message.steamSetpoint });
  return mergeStatus(status, said({
    type: "status_delta",
    machine: said({
      state: message.state,
      mode: message.mode,
      isBrewing: message.isBrewing,
      machineOnTimestamp: message.machineOnTimestamp,
    }),
    temps: said({
      brew: { ...status?.temps?.brew, ...brew },
      steam: { ...status?.temps?.steam, ...steam },
      group: message.groupTemp,
    }),
    pressure: message.pressure,
    power: said({ current: message.power }),
    water: said({ tankLevel: message.waterLevel }),
  }));
}
