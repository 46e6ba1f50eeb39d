-- A script for wrk that POSTs one fixed body. Arguments after "--": a file of "Name: value" headers, a file with the body.
function init(arguments)
   for line in io.lines(arguments[1]) do
      local name, value = line:match("^([^:]+): (.*)$")
      wrk.headers[name] = value
   end
   local file = assert(io.open(arguments[2], "rb"))
   wrk.body = file:read("*a")
   file:close()
   wrk.method = "POST"
end

-- Prints one line that a program can read. Latencies and the duration are in microseconds.
function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      'RESULT {"requests": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, "connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}\n',
      summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
      errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
