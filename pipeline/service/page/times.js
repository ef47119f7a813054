// Instants as people read them: by the clocks of the place where a camera is, where its time zone is known, else as UTC.
const PARTS = { year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23", timeZoneName: "longOffset" };
const formats = new Map();

function format(zone) {
  if (!formats.has(zone)) {
    try {
      formats.set(zone, new Intl.DateTimeFormat("en-GB", { ...PARTS, timeZone: zone }));
    } catch {
      formats.set(zone, format("UTC")); // a browser knows fewer zones than the service
    }
  }
  return formats.get(zone);
}

const parts = (time, zone) => Object.fromEntries(format(zone ?? "UTC").formatToParts(new Date(time)).map(({ type, value }) => [type, value]));

// As the rest of the product writes it, without saying where.
export function clock(time, zone, seconds = true) {
  const { year, month, day, hour, minute, second } = parts(time, zone);
  return `${year.padStart(4, "0")}-${month}-${day} ${hour}:${minute}${seconds ? ":" + second : ""}`;
}

// UTC+2, UTC-3:30 or UTC: what the clocks of a zone are ahead at that time.
export function offset(time, zone) {
  const [, sign, hours, minutes] = parts(time, zone).timeZoneName.match(/([+-])(\d+):(\d+)/) ?? [null, "", "0", "00"];
  if (Number(hours) === 0 && minutes === "00") return "UTC";
  return `UTC${sign}${Number(hours)}${minutes === "00" ? "" : `:${minutes}`}`;
}

export const moment = (time, zone) => (time ? `${clock(time, zone)} ${offset(time, zone)}` : "time not known");

// The same in milliseconds.
export const ahead = (time, zone) => Date.parse(`${clock(time, zone).replace(" ", "T")}Z`) - 1000 * Math.floor(time / 1000);

// Camera id -> zone, of cameras as the service answers them.
export const zonesOf = (cameras) => new Map(cameras.filter((each) => each.zone).map((each) => [each.camera_id, each.zone]));

// The zone that all of these cameras are in; undefined where they are in several, or one's is not known.
export function sharedZone(zones, cameras) {
  const found = new Set(cameras.map((each) => zones.get(each)));
  return found.size === 1 ? [...found][0] : undefined;
}
