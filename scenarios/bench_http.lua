-- The bench's client over HTTP when wrk is installed: the same closed loop as bench_http.py, on a tenth of its CPU.
-- One thread; its connections share the token list round robin, and every request has a key of its own.
-- Units: wrk counts latency in microseconds; the JSON line says milliseconds.

local market, run = os.getenv("SEATRIAL_BENCH_MARKET"), os.getenv("SEATRIAL_BENCH_RUN")
local tokens, bodies, sent = {}, {}, 0
for token in string.gmatch(os.getenv("SEATRIAL_BENCH_TOKENS"), "[^,]+") do tokens[#tokens + 1] = token end
for outcome = 0, 1 do
  bodies[outcome + 1] = string.format('{"marketId":%s,"outcome":%d,"side":"buy","shares":1000000}', market, outcome)
end

request = function()
  sent = sent + 1
  local headers = {
    ["Authorization"] = "Bearer " .. tokens[sent % #tokens + 1],
    ["Content-Type"] = "application/json",
    ["Idempotency-Key"] = "bench-" .. run .. "-" .. sent,
  }
  return wrk.format("POST", "/api/trade", headers, bodies[sent % 2 + 1])
end

done = function(summary, latency)
  local refused = summary.errors.status + summary.errors.connect + summary.errors.read
    + summary.errors.write + summary.errors.timeout
  io.write(string.format(
    '\nSEATRIAL {"seconds":%f,"replied_ok":%d,"refused":%d,"p50_ms":%f,"p99_ms":%f,"max_ms":%f}\n',
    summary.duration / 1e6, summary.requests - summary.errors.status, refused,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency.max / 1000))
end
