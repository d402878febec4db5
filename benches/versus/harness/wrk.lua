-- For wrk: sends as many requests at once as the first argument says, over as many connections as the second one
-- says, and prints what was counted as one line of JSON.

local ffi = require("ffi")

ffi.cdef("typedef struct { uint64_t count, limit, min, max, samples[1]; } wrk_statistics;")

local batch

-- wrk runs this once per thread, and `done` in a state of its own: what `done` needs, `setup` must hand over.
function init(arguments)
   local depth = tonumber(arguments[1])
   connections = tonumber(arguments[2])
   if depth > 1 then
      batch = string.rep(wrk.format(), depth)
      request = function() return batch end
   end
end

function setup(thread)
   first_thread = first_thread or thread
end

-- Before it calls `done`, wrk adds the samples that it believes a client with a fixed schedule would have taken. These
-- clients have none, and with pipelining it takes a sixteenth of the true interval, until no percentile is left. What
-- it added to a bucket is what it left in the bucket one interval above, so it can be taken away again.
local function samples_taken(latency, interval)
   local statistics = ffi.cast("wrk_statistics **", latency)[0]
   local highest = tonumber(statistics.max)
   local taken, total = {}, 0
   for bucket = tonumber(statistics.min), highest do
      local count = tonumber(statistics.samples[bucket])
      if bucket > interval and bucket + interval <= highest then
         count = count - tonumber(statistics.samples[bucket + interval])
      end
      if count > 0 then
         total = total + count
         taken[#taken + 1] = { microseconds = bucket, up_to_here = total }
      end
   end
   return taken, total
end

local function percentile(taken, total, percent)
   for _, sample in ipairs(taken) do
      if sample.up_to_here >= total * percent / 100 then
         return sample.microseconds
      end
   end
   return 0
end

function done(summary, latency, requests)
   local per_connection = math.floor(summary.requests / first_thread:get("connections"))
   local interval = per_connection > 0 and math.floor(summary.duration / per_connection) or math.huge
   local taken, total = samples_taken(latency, interval)
   local errors = summary.errors
   io.write(string.format(
      '{"requests": %d, "seconds": %.6f, "p50_us": %d, "p99_us": %d, "errors": %d}\n',
      summary.requests,
      summary.duration / 1e6,
      percentile(taken, total, 50),
      percentile(taken, total, 99),
      errors.connect + errors.read + errors.write + errors.status + errors.timeout
   ))
end
