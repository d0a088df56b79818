-- Foreign keys.
SELECT k.conrelid::int8 AS relation, k.confrelid::int8 AS target, k.conname AS name,
    ARRAY(SELECT a.attname FROM unnest(k.conkey) n JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = n) AS columns
FROM pg_constraint k
WHERE k.contype = 'f' AND k.conparentid = 0
ORDER BY 1, 3
