// Reading and writing libp2p streams with back pressure, and telling an end from a reset.

const READ_AHEAD = 1024 * 1024

/**
 * What arrives on a stream. Built on the events, because the library's own async iterator stops
 * at the peer's half-close and drops what a paused stream had not handed out yet; and on the
 * stream's state rather than its 'end', which comes too early when bytes read during negotiation
 * are pushed back.
 */
export class Reader {
  #chunks = []
  #bytes = 0
  #failure = null
  #wake = () => {}

  constructor (stream) {
    this.stream = stream
    stream.addEventListener('message', ({ data }) => {
      this.#chunks.push(data.subarray())
      this.#bytes += data.byteLength
      if (this.#bytes > READ_AHEAD && stream.readStatus === 'readable') stream.pause()
      this.#wake()
    })
    for (const event of ['remoteCloseWrite', 'end']) stream.addEventListener(event, () => this.#wake())
    stream.addEventListener('close', ({ error }) => { this.#failure = error ?? null; this.#wake() })
  }

  get #ended () {
    return this.stream.remoteWriteStatus === 'closed' && this.stream.readBufferLength === 0
  }

  /** The next bytes; null at the end. Throws what ended the stream when it was no clean end. */
  async next () {
    while (this.#chunks.length === 0) {
      if (this.#failure != null) throw this.#failure
      if (this.#ended) return null
      await new Promise(resolve => { this.#wake = resolve })
    }
    const chunk = this.#chunks.shift()
    this.#bytes -= chunk.byteLength
    if (this.#bytes <= READ_AHEAD && this.stream.readStatus === 'paused') this.stream.resume()
    return chunk
  }

  /** Everything up to `size` bytes or the end. */
  async gather (size = Infinity) {
    const parts = []
    for (let have = 0; have < size;) {
      const chunk = await this.next()
      if (chunk == null) break
      parts.push(chunk)
      have += chunk.byteLength
    }
    return Buffer.concat(parts)
  }

  /** How it ended, reading on to there: 'end', 'reset', or the name of another error. */
  async ending () {
    try {
      while (await this.next() != null);
      return 'end'
    } catch (error) {
      return nameOf(error)
    }
  }
}

export function nameOf (error) {
  return error.name === 'StreamResetError' ? 'reset' : `${error.name}: ${error.message}`
}

export async function write (stream, data) {
  if (!stream.send(data)) await stream.onDrain()
}
