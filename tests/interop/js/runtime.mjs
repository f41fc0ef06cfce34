// What current js-libp2p takes from Node 22 and Node 20 has not got. Imported before it.

Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new Promise((yes, no) => { resolve = yes; reject = no })
  return { promise, resolve, reject }
}
