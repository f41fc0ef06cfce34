// js-libp2p's Kademlia among our nodes, and what the checks ask of it.

import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { peerIdFromString } from '@libp2p/peer-id'
import { blake3 } from '@noble/hashes/blake3.js'
import { multiaddr } from '@multiformats/multiaddr'
import { CID } from 'multiformats/cid'
import { create as multihash } from 'multiformats/hashes/digest'

const PROTOCOL = '/ipfs/kad/1.0.0'
const RAW = 0x55
const BLAKE3_256 = 0x1e
const NAMESPACE = Buffer.from('/meshnode/')

/** A service as any program would set it up, but for what a test on loopback must have otherwise. */
export function dhtService (mode) {
  return kadDHT({
    protocol: PROTOCOL,
    clientMode: mode === 'client',
    peerInfoMapper: passthroughMapper, // loopback addresses count here
    allowQueryWithZeroPeers: true,
    // Kademlia keeps and returns nothing of a namespace without these.
    validators: { meshnode: validateManifest },
    selectors: { meshnode: () => 0 }
  })
}

async function validateManifest (key, value) {
  if (!Buffer.from(blake3(value)).equals(key.subarray(NAMESPACE.length))) throw new Error('not its digest')
}

export const dhtRoles = {
  /** Done when the peer is in the routing table, which takes identify and ping and nothing else. */
  async wait_known (node, { peer }) {
    while (await node.services.dht.routingTable.find(peerIdFromString(peer)) == null) {
      await new Promise(resolve => setTimeout(resolve, 5))
    }
    return true
  },

  async addresses_of (node, { peer }) {
    const { addresses } = await node.peerStore.get(peerIdFromString(peer))
    return addresses.map(({ multiaddr }) => multiaddr.toString())
  },

  async put (node, { digest, value }) {
    await node.contentRouting.put(keyOf(digest), Buffer.from(value, 'hex'))
    return true
  },

  async get (node, { digest }) {
    return Buffer.from(await node.contentRouting.get(keyOf(digest))).toString('hex')
  },

  async find_peer (node, { target }) {
    const { multiaddrs } = await node.peerRouting.findPeer(peerIdFromString(target), { useCache: false })
    return multiaddrs.map(address => address.decapsulateCode(421).toString())
  },

  async provide (node, { digest }) {
    await node.contentRouting.provide(cidOf(digest))
    return true
  },

  async find_providers (node, { digest }) {
    const found = []
    for await (const { id } of node.contentRouting.findProviders(cidOf(digest))) found.push(id.toString())
    return found
  }
}

function keyOf (digest) {
  return Buffer.concat([NAMESPACE, Buffer.from(digest, 'hex')])
}

function cidOf (digest) {
  return CID.createV1(RAW, multihash(BLAKE3_256, Buffer.from(digest, 'hex')))
}
