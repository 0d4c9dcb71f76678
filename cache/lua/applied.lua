-- How much of the log has been applied.
if not read_clocks({}) then return UNSETTLED end
return { tonumber(call('HGET', CLOCKS, '\1v')) }
