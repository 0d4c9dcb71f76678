-- Begin a generation, if there is none of this run or if there must be another. All there was is a miss.
-- ARGV: what makes it unlike all others; the version of the log up to which nothing has to be applied; 1: in any case.
if ARGV[4] == '' and read_clocks({}) then return { 'settled' } end
call('UNLINK', CLOCKS, SPACE .. 'ages', SPACE .. 'writes', USE)
call('HSET', CLOCKS, '\1g', RUN .. ARGV[2], '\1c', 1, '\1v', ARGV[3])
return { 'settled' }
