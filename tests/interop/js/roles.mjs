// What the js side does in a check, and serves. The same as ../roles.py: see there for what each means.

import { createHash, randomBytes } from 'node:crypto'
import { Reader, nameOf, write } from './streams.mjs'

const ECHO = '/test/echo/1'
const DIGEST = '/test/digest/1'
const ENDS_FIRST = '/test/ends-first/1'
const HOLD = '/test/hold/1'
const RESETS = '/test/resets/1'
const IGNORES = '/test/ignores/1'
const ITERATES = '/test/iterates/1'
const UNKNOWN = '/test/unknown/1'
const TOKEN_SIZE = 8
const NO_PROGRESS_MS = 300

const endings = new Map()

export const handlers = {
  async [ECHO] (stream) {
    const reader = new Reader(stream)
    for (let data; (data = await reader.next()) != null;) await write(stream, data)
    await stream.close()
  },

  async [DIGEST] (stream) {
    const reader = new Reader(stream)
    const hash = createHash('sha256')
    let size = 0
    for (let data; (data = await reader.next()) != null;) { hash.update(data); size += data.byteLength }
    await write(stream, answerOf(size, hash))
    await stream.close()
  },

  async [ENDS_FIRST] (stream) {
    const reader = new Reader(stream)
    await write(stream, Buffer.from('nothing more'))
    await stream.close()
    const received = await reader.gather()
    record(received.subarray(0, TOKEN_SIZE), `end after ${received.length}`)
  },

  async [HOLD] (stream) {
    const reader = new Reader(stream)
    const token = await reader.gather(TOKEN_SIZE)
    await write(stream, Buffer.from('.'))
    record(token, await reader.ending())
    if (stream.status === 'open') await stream.close()
  },

  async [RESETS] (stream) {
    await new Reader(stream).next()
    stream.abort(new Error('as the check demands'))
  },

  async [IGNORES] (stream) {
    stream.pause()
  },

  /** Reads as most programs do, though that loses bytes when the end comes in one frame with them. */
  async [ITERATES] (stream) {
    const parts = []
    for await (const data of stream) parts.push(data.subarray())
    const received = Buffer.concat(parts)
    record(received.subarray(0, TOKEN_SIZE), `end after ${received.length}`)
    await stream.close()
  }
}

export const roles = {
  async echo (open, { streams, size, pieces }) {
    await Promise.all(Array.from({ length: streams }, async () => {
      const stream = await open(ECHO)
      const sent = createHash('sha256')
      const [received] = await Promise.all([
        summary(new Reader(stream)),
        send(stream, size, pieces, sent)
      ])
      expect(received, answerOf(size, sent))
    }))
    return streams * size
  },

  async digest (open, { size, pieces }) {
    const stream = await open(DIGEST)
    const reader = new Reader(stream)
    const sent = createHash('sha256')
    await send(stream, size, pieces, sent)
    expect(await reader.gather(), answerOf(size, sent))
    return size
  },

  async short_streams (open, { count, at_once: atOnce }) {
    let left = count
    await Promise.all(Array.from({ length: atOnce }, async () => {
      while (left-- > 0) {
        const stream = await open(ECHO)
        const reader = new Reader(stream)
        const message = Buffer.from(`stream ${left}`)
        await write(stream, message)
        await stream.close()
        expect(await reader.gather(), message)
      }
    }))
    return count
  },

  async writes_after_their_end (open, { token, size }) {
    const stream = await open(ENDS_FIRST)
    const reader = new Reader(stream)
    const heard = await reader.gather()
    await write(stream, Buffer.concat([Buffer.from(token, 'hex'), Buffer.alloc(size - TOKEN_SIZE)]))
    await stream.close()
    return heard.toString()
  },

  async resets (open, { token }) {
    const stream = await open(HOLD)
    const reader = new Reader(stream)
    await write(stream, Buffer.from(token, 'hex'))
    await reader.next()
    stream.abort(new Error('as the check demands'))
    return true
  },

  async ends (open, { token }) {
    const stream = await open(HOLD)
    const reader = new Reader(stream)
    await write(stream, Buffer.from(token, 'hex'))
    await reader.next()
    await stream.close()
    return await reader.ending()
  },

  async reads_until_reset (open) {
    const stream = await open(RESETS)
    const reader = new Reader(stream)
    await write(stream, Buffer.from('.'))
    return await reader.ending()
  },

  async writes_until_reset (open) {
    const stream = await open(RESETS)
    const reader = new Reader(stream)
    try {
      for (let sent = 0; sent < 1024; sent++) await write(stream, Buffer.alloc(65536))
      return 'all was taken'
    } catch {
      return await reader.ending()
    }
  },

  async writes_to_nobody (open) {
    const stream = await open(IGNORES)
    let taken = 0
    while (stream.send(Buffer.alloc(65536)) || await drainsSoon(stream)) taken += 65536
    await roles.echo(open, { streams: 1, size: 300000, pieces: [65536] })
    stream.abort(new Error('as the check demands'))
    return taken
  },

  async asks_for_unknown (open) {
    try {
      await open(UNKNOWN)
      return 'accepted'
    } catch (error) {
      return error.name === 'UnsupportedProtocolError' ? 'refused' : nameOf(error)
    }
  },

  async ending_of (_, { token }) {
    while (!endings.has(token)) await new Promise(resolve => setTimeout(resolve, 5))
    return endings.get(token)
  }
}

export function guarded (handler) {
  return async stream => {
    try {
      await handler(stream)
    } catch (error) {
      if (nameOf(error) !== 'reset') console.error('handler failed', error)
      stream.abort(error)
    }
  }
}

function record (token, ending) {
  endings.set(Buffer.from(token).toString('hex'), ending)
}

async function drainsSoon (stream) {
  const gaveUp = AbortSignal.timeout(NO_PROGRESS_MS)
  try {
    await stream.onDrain({ signal: gaveUp })
    return true
  } catch (error) {
    if (gaveUp.aborted) return false
    throw error
  }
}

async function send (stream, size, pieces, hash) {
  const random = randomBytes(Math.max(...pieces) + 4096)
  for (let done = 0, index = 0; done < size; index++) {
    const start = index % 4096
    const piece = random.subarray(start, start + Math.min(pieces[index % pieces.length], size - done))
    hash.update(piece)
    await write(stream, piece)
    done += piece.length
  }
  await stream.close()
}

async function summary (reader) {
  const hash = createHash('sha256')
  let size = 0
  for (let data; (data = await reader.next()) != null;) { hash.update(data); size += data.byteLength }
  return answerOf(size, hash)
}

function answerOf (size, hash) {
  const length = Buffer.alloc(8)
  length.writeBigUInt64BE(BigInt(size))
  return Buffer.concat([length, hash.digest()])
}

function expect (received, sent) {
  if (!sent.equals(received)) {
    throw new Error(`sent ${sent.toString('hex')}, received ${received.toString('hex')}`)
  }
}
