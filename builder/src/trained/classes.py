# What Java is trained with: a driver as in Kubernetes, an executor that registers with it, SQL queries, a Parquet file
# written and read, and a Python worker.
import sys

import cluster
from pyspark.sql import SparkSession

home = sys.argv[1]
spark = SparkSession.builder.master(cluster.serve()).getOrCreate()
context = spark.sparkContext
rows = spark.range(1000).selectExpr("id", "id % 7 as kind", "cast(id as string) as name", "id / 3.0 as share")
rows.write.parquet(home + "/parquet")
read = spark.read.parquet(home + "/parquet")
read.createOrReplaceTempView("rows")
query = "select kind, count(*) as number, max(name) as last, avg(share) from rows where id > 3 group by kind order by kind"
assert len(spark.sql(query).collect()) == 7
assert read.join(rows.withColumnRenamed("id", "other"), "kind").where("id < other").count() > 0
assert context.parallelize(range(10)).map(lambda value: value + 1).sum() == 55
spark.stop()
assert cluster.processes, "the driver has started no executor"
for process in cluster.processes:
    process.wait(60)
