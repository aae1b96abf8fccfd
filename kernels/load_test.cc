#include "kernels/load.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace phalanx::kernels {
namespace {

TEST(FindTable, FindsABuiltInByName) {
  auto table = FindTable("cpu", {{CpuTable()}, {}});
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(*table, CpuTable());
}

TEST(FindTable, NamesWhatWasTried) {
  auto table = FindTable("cuda", {{CpuTable()}, {"libphalanx_no_such_plugin.so", "libc.so.6"}});
  EXPECT_EQ(table.status().code(), absl::StatusCode::kNotFound);
  const std::string message(table.status().message());
  EXPECT_NE(message.find("built-in cpu"), std::string::npos) << message;
  EXPECT_NE(message.find("libphalanx_no_such_plugin.so"), std::string::npos) << message;
  EXPECT_NE(message.find("exports no PhalanxKernelTable"), std::string::npos) << message;
}

TEST(FindTable, AnotherVersionIsRefusedWithBothNumbers) {
  Table other = *CpuTable();
  other.version = 77;
  auto table = FindTable("cpu", {{&other}, {}});
  EXPECT_EQ(table.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(table.status().message().find("version 77"), std::string::npos);
  EXPECT_NE(table.status().message().find(absl::StrCat("version ", kTableVersion)), std::string::npos);
}

TEST(RequireOperations, NamesEveryMissingOne) {
  EXPECT_TRUE(RequireOperations(*CpuTable(), {"linear", "attention", "sample", "logprobs", "pack_weight"}).ok());
  const absl::Status status = RequireOperations(*CpuTable(), {"linear", "graph_begin", "all_reduce"});
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(status.message().find("graph_begin, all_reduce"), std::string::npos) << status;
  EXPECT_EQ(status.message().find("linear"), std::string::npos) << status;
  EXPECT_EQ(RequireOperations(*CpuTable(), {"lineal"}).code(), absl::StatusCode::kInvalidArgument);
}

TEST(RequireOperations, AnOlderShorterTableLacksItsTail) {
  Table old = *CpuTable();
  old.size = offsetof(Table, sample);
  EXPECT_TRUE(CheckTable(old).ok());
  EXPECT_TRUE(RequireOperations(old, {"linear"}).ok());
  EXPECT_FALSE(RequireOperations(old, {"sample"}).ok());
  old.size = 16;
  EXPECT_EQ(CheckTable(old).code(), absl::StatusCode::kFailedPrecondition);
}

TEST(OperationNames, CoverEveryEntry) {
  // Each name is one pointer after the head.
  EXPECT_EQ(OperationNames().size() * sizeof(void*), sizeof(Table) - offsetof(Table, create));
}

}  // namespace
}  // namespace phalanx::kernels
