// js-libp2p's Kademlia among our nodes, and what the checks ask of it.

import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { peerIdFromString } from '@libp2p/peer-id'
import { multiaddr } from '@multiformats/multiaddr'
import { CID } from 'multiformats/cid'
import { create as multihash } from 'multiformats/hashes/digest'

const PROTOCOL = '/ipfs/kad/1.0.0'
const RAW = 0x55
const BLAKE3_256 = 0x1e

export function dhtService () {
  return kadDHT({
    protocol: PROTOCOL,
    clientMode: false,
    peerInfoMapper: passthroughMapper, // loopback addresses count here
    allowQueryWithZeroPeers: true
  })
}

export const dhtRoles = {
  /** Dial a peer; done when it is in the routing table, after identify and ping. */
  async learn (node, { peer, address }) {
    const id = peerIdFromString(peer)
    await node.dial(multiaddr(`${address}/p2p/${peer}`))
    while (await node.services.dht.routingTable.find(id) == null) {
      await new Promise(resolve => setTimeout(resolve, 5))
    }
    return true
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

function cidOf (digest) {
  return CID.createV1(RAW, multihash(BLAKE3_256, Buffer.from(digest, 'hex')))
}
