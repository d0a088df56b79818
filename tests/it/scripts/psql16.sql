-- What psql knows since 16; older ones complain of unknown commands even where they are passed over.
SELECT $1::int + $2::int AS sum \bind 40 2 \g
SELECT nextval('turns') > 0 AS more \watch c=3 i=0.01
