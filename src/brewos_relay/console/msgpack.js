// A decoder for MessagePack from machines and the relay.

const MOST_DEEP = 32;
const texts = new TextDecoder("utf-8"); // names of networks may be in any encoding; invalid bytes become �

/** Decode an ArrayBuffer that holds exactly one value. Throws RangeError or TypeError. */
export function decode(buffer) {
  const reader = new Reader(buffer);
  const value = reader.value(0);
  if (reader.at !== buffer.byteLength) throw new RangeError("there are bytes after the value");
  return value;
}

class Reader {
  constructor(buffer) {
    this.buffer = buffer;
    this.view = new DataView(buffer);
    this.at = 0;
  }

  value(depth) {
    if (depth > MOST_DEEP) throw new RangeError("the value is nested too deeply");
    const mark = this.uint(1);
    if (mark < 0x80) return mark;
    if (mark < 0x90) return this.map(mark & 0x0f, depth);
    if (mark < 0xa0) return this.list(mark & 0x0f, depth);
    if (mark < 0xc0) return this.text(mark & 0x1f);
    if (mark >= 0xe0) return mark - 0x100;
    switch (mark) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return this.bytes(this.uint(1));
      case 0xc5: return this.bytes(this.uint(2));
      case 0xc6: return this.bytes(this.uint(4));
      // 93.2 is 93.19999694824219 in 32 bits: round to the 7 digits of a float.
      case 0xca: return Number(this.view.getFloat32(this.take(4)).toPrecision(7));
      case 0xcb: return this.view.getFloat64(this.take(8));
      case 0xcc: return this.uint(1);
      case 0xcd: return this.uint(2);
      case 0xce: return this.uint(4);
      case 0xcf: return Number(this.view.getBigUint64(this.take(8)));
      case 0xd0: return this.view.getInt8(this.take(1));
      case 0xd1: return this.view.getInt16(this.take(2));
      case 0xd2: return this.view.getInt32(this.take(4));
      case 0xd3: return Number(this.view.getBigInt64(this.take(8)));
      case 0xd9: return this.text(this.uint(1));
      case 0xda: return this.text(this.uint(2));
      case 0xdb: return this.text(this.uint(4));
      case 0xdc: return this.list(this.uint(2), depth);
      case 0xdd: return this.list(this.uint(4), depth);
      case 0xde: return this.map(this.uint(2), depth);
      case 0xdf: return this.map(this.uint(4), depth);
    }
    throw new TypeError(`0x${mark.toString(16)} is not a known type`);
  }

  /** Skip some bytes. Returns their offset. */
  take(length) {
    const from = this.at;
    if (from + length > this.buffer.byteLength) throw new RangeError("the value ends too early");
    this.at += length;
    return from;
  }

  uint(length) {
    const from = this.take(length);
    if (length === 1) return this.view.getUint8(from);
    return length === 2 ? this.view.getUint16(from) : this.view.getUint32(from);
  }

  bytes(length) {
    return new Uint8Array(this.buffer, this.take(length), length);
  }

  text(length) {
    return texts.decode(this.bytes(length));
  }

  list(length, depth) {
    const found = [];
    for (let number = 0; number < length; number++) found.push(this.value(depth + 1));
    return found;
  }

  map(length, depth) {
    const found = Object.create(null); // no prototype, so that keys like __proto__ are plain keys
    for (let number = 0; number < length; number++) {
      const key = this.value(depth + 1);
      found[key] = this.value(depth + 1);
    }
    return found;
  }
}
