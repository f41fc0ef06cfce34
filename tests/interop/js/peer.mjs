// A js-libp2p node that does what it is told: one JSON object a line on stdin, one answer a line on
// stdout. Ends with its stdin.
//
//     node peer.mjs [--monitor MILLISECONDS] [--dht client|server] [--chainsafe]

import './runtime.mjs'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { identify, identifyPush } from '@libp2p/identify'
import { peerIdFromString } from '@libp2p/peer-id'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { dhtRoles, dhtService } from './dht.mjs'
import { guarded, handlers, roles } from './roles.mjs'

const ROLE_DEADLINE_MS = 40_000
const MANY = { maxInboundStreams: 1000, maxOutboundStreams: 1000 }
const { values: options } = parseArgs({
  options: {
    monitor: { type: 'string', default: '10000' },
    dht: { type: 'string' },
    chainsafe: { type: 'boolean', default: false } // Noise and Yamux as they were before they moved
  }
})
const home = options.chainsafe ? '@chainsafe/libp2p-' : '@libp2p/'
const { noise } = await import(`${home}noise`)
const { yamux } = await import(`${home}yamux`)

const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  // A paused stream must have room for the window it has granted.
  streamMuxers: [yamux({ streamOptions: { maxReadBufferLength: 32 * 1024 * 1024 } })],
  connectionMonitor: { pingInterval: Number(options.monitor) },
  connectionManager: { inboundConnectionThreshold: 1000 },
  services: {
    identify: identify(),
    identifyPush: identifyPush(),
    ping: ping(),
    ...(options.dht ? { dht: dhtService(options.dht) } : {})
  }
})
for (const [protocol, handler] of Object.entries(handlers)) {
  await node.handle(protocol, guarded(handler), MANY)
}

const connection = {
  async hello () {
    return { peer: node.peerId.toString(), address: node.getMultiaddrs()[0].decapsulate('/p2p').toString() }
  },
  async dial ({ address, peer }) {
    await node.dial(multiaddr(`${address}/p2p/${peer}`))
    return true
  },
  async wait_connected ({ peer }) {
    while (connectionTo(peer) == null) await new Promise(resolve => setTimeout(resolve, 5))
    return true
  },
  async wait_disconnected ({ peer }) {
    while (connectionTo(peer) != null) await new Promise(resolve => setTimeout(resolve, 5))
    return true
  },
  async is_connected ({ peer }) {
    return connectionTo(peer) != null
  },
  async ping ({ peer }) {
    return await node.services.ping.ping(peerIdFromString(peer))
  },
  /** What a peer says of itself, asked now. */
  async identify ({ peer }) {
    const told = await node.services.identify.identify(connectionTo(peer))
    return {
      peer: told.peerId.toString(),
      agent: told.agentVersion,
      listen: told.listenAddrs.map(address => address.toString()),
      protocols: told.protocols,
      observed: told.observedAddr.toString()
    }
  },
  async wait_speaks ({ peer, protocol }) {
    const spoken = async () => (await node.peerStore.get(peerIdFromString(peer))).protocols
    while (!(await spoken()).includes(protocol)) await new Promise(resolve => setTimeout(resolve, 5))
    return true
  },
  async hang_up ({ peer }) {
    await node.hangUp(peerIdFromString(peer))
    return true
  }
}

function connectionTo (peer) {
  return node.getConnections(peerIdFromString(peer)).find(({ status }) => status === 'open')
}

async function perform ({ do: name, ...given }) {
  if (name in connection) return await connection[name](given)
  if (name in dhtRoles) return await dhtRoles[name](node, given)
  const open = protocol => connectionTo(given.peer).newStream(protocol, MANY)
  return await roles[name](open, given)
}

async function answer (line) {
  const request = JSON.parse(line)
  const late = new Promise((resolve, reject) => setTimeout(
    () => reject(new Error(`not done within ${ROLE_DEADLINE_MS} ms`)), ROLE_DEADLINE_MS).unref())
  let reply
  try {
    reply = { result: await Promise.race([perform(request), late]) }
  } catch (error) {
    reply = { error: `${error.name}: ${error.message}` }
  }
  process.stdout.write(JSON.stringify(reply) + '\n')
}

for await (const line of createInterface({ input: process.stdin })) answer(line)
process.exit(0)
